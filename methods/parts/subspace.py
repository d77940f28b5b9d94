"""Subspaces that hold most of the energy of a layer's inputs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models import captures

_HIGHEST = jax.lax.Precision.HIGHEST


def second_moments(
  model: Any, params: Any, batch: Mapping[str, Any]
) -> dict[str, jax.Array]:
  """Returns the uncentred second moments of every block's attention input.

  They are sums, so that those of batches and devices can be added, and float32
  for any type of the model.

  Args:
    model: Its attention_inputs name the modules.
    params: Its parameters.
    batch: image [B, S, S, 3], mask bool [B].

  Returns:
    {block's short name: sum of x x^T [D, D]} over all tokens x that the
    attention reads, of the images that the mask keeps.
  """
  inputs = model.attention_inputs
  _, seen = captures.capture(model, params, batch, tuple(inputs.values()))
  mask = batch["mask"].astype(jnp.float32)
  moments = {}
  for block, branch in inputs.items():
    x = seen[branch].astype(jnp.float32) * mask[:, None, None]  # [B, T, D]
    moments[model.short(block)] = jnp.einsum(
      "btd,bte->de", x, x, precision=_HIGHEST
    )
  return moments


def eigen(moment: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns eigenvalues [D], in falling order, and eigenvectors [D, D].

  Eigenvalues below 0, which are rounding errors, become 0.

  Args:
    moment: Positive semi-definite up to rounding, [D, D].
  """
  values, vectors = jnp.linalg.eigh((moment + moment.T) / 2)
  return jnp.maximum(values[::-1], 0.0), vectors[:, ::-1]


def leading(values: jax.Array, threshold: float) -> jax.Array:
  """Returns which leading eigenvalues hold a share of their sum, bool [D].

  They are the first k, k the smallest number for which their sum is at least
  threshold times the sum of all.

  Args:
    values: In falling order and at least 0, [D].
    threshold: Above 0, at most 1.
  """
  total = jnp.cumsum(values)
  enough = total >= threshold * total[-1]
  return jnp.arange(values.size) <= jnp.argmax(enough)


def projector(
  vectors: jax.Array, keep: jax.Array, *, unit_norm: bool = False
) -> jax.Array:
  """Returns V_k V_k^T [D, D], the projector onto the span of kept columns.

  Args:
    vectors: Orthonormal columns, [D, D].
    keep: The k columns to keep, bool [D].
    unit_norm: Whether it is divided by its Frobenius norm, sqrt(k).
  """
  kept = vectors * keep[None, :]
  product = jnp.matmul(kept, kept.T, precision=_HIGHEST)
  return product / jnp.sqrt(jnp.sum(keep)) if unit_norm else product


def check_threshold(name: str, value: float) -> None:
  """Raises ValueError for a share of energy outside (0, 1]."""
  if not 0 < value <= 1:
    raise ValueError(
      f"method.{name}={value} must be above 0 and at most 1: it is a share of "
      "the energy of the inputs."
    )
