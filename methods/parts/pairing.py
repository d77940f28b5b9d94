"""Joins the batches of several streams for one forward pass."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def join(*batches: Mapping[str, Any]) -> dict[str, Any]:
  """Returns one batch of several; dropout draws a mask for each row.

  The rows of equally large batches alternate, so that every device keeps its
  rows.

  Args:
    *batches: Arrays [B_i, ...] of the same names.
  """

  def join_leaf(*leaves: jax.Array) -> jax.Array:
    if len({len(leaf) for leaf in leaves}) > 1:
      return jnp.concatenate(leaves)
    rows = len(leaves) * len(leaves[0])
    return jnp.stack(leaves, axis=1).reshape(rows, *leaves[0].shape[1:])

  return jax.tree.map(join_leaf, *map(dict, batches))


def part(outputs: Any, *sizes: int) -> tuple[Any, ...]:
  """Returns the outputs of each batch: undoes `join`.

  Args:
    outputs: Tree of arrays [B_1 + B_2 + ..., ...].
    *sizes: B_1, B_2, ...
  """
  ends = [sum(sizes[:i]) for i in range(1, len(sizes))]

  def part_leaf(x: jax.Array) -> list[jax.Array]:
    if len(set(sizes)) > 1:
      return jnp.split(x, ends)
    rows = x.reshape(sizes[0], len(sizes), *x.shape[1:])
    return [rows[:, i] for i in range(len(sizes))]

  leaves, tree = jax.tree.flatten(outputs)
  parts = zip(*map(part_leaf, leaves), strict=True)
  return tuple(tree.unflatten(leaf) for leaf in parts)
