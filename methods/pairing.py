"""Two streams through one forward pass."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def join(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
  """Returns two batches as one, whose dropout masks are independent.

  Batches of one size alternate, so that each device keeps its rows.

  Args:
    first: Arrays [B, ...].
    second: Arrays [B', ...] of the same names.
  """

  def join_leaf(a: jax.Array, b: jax.Array) -> jax.Array:
    if len(a) != len(b):
      return jnp.concatenate([a, b])
    return jnp.stack([a, b], axis=1).reshape(2 * len(a), *a.shape[1:])

  return jax.tree.map(join_leaf, dict(first), dict(second))


def part(outputs: Any, first: int, second: int) -> tuple[Any, Any]:
  """Returns the outputs of two batches that `join` made one.

  Args:
    outputs: Tree of arrays [B + B', ...].
    first: B.
    second: B'.
  """

  def part_leaf(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    if first != second:
      return x[:first], x[first:]
    pairs = x.reshape(first, 2, *x.shape[1:])
    return pairs[:, 0], pairs[:, 1]

  leaves, tree = jax.tree.flatten(outputs)
  halves = zip(*map(part_leaf, leaves), strict=True)
  return tuple(tree.unflatten(half) for half in halves)
