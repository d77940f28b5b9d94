"""Losses and their parts, as pure functions of arrays."""

import jax
import jax.numpy as jnp

from libml import prototypes as prototypes_lib

# Finite, so that 0 * mask stays 0 where labels are probabilities; exp of it
# is exactly 0 in every float type, so a masked column gets no gradient.
_MASKED = -1e9


def mask_logits(logits: jax.Array, allowed: jax.Array) -> jax.Array:
  """Returns logits [B, C], masked outside allowed bool [C], or [B or 1, C]."""
  allowed = allowed if allowed.ndim == 2 else allowed[None, :]
  return jnp.where(allowed, logits, _MASKED)


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Returns the cross entropy of each row, at least float32 [B].

  Args:
    logits: [B, C].
    label: int32 [B], or probabilities [B, C].
  """
  wide = jnp.promote_types(logits.dtype, jnp.float32)
  log_probs = jax.nn.log_softmax(logits.astype(wide), axis=-1)
  if label.ndim == 2:
    return -jnp.sum(label * log_probs, axis=-1)
  return -jnp.take_along_axis(log_probs, label[:, None], axis=-1)[:, 0]


def augmented_triplet(
  features: jax.Array,
  label: jax.Array,
  prototypes: jax.Array,
  known: jax.Array,
  *,
  margin: float,
) -> jax.Array:
  """Returns the augmented triplet loss of LoRA-Sub-DRS, float32[].

  With d distances on the unit sphere, a_i the largest to an example of i's
  class, i included, and b_i the smallest to an example of another class or to a
  known prototype:

    mean_i max(0, a_i - b_i + margin)

  Where there is neither other class nor prototype the hinge is at 0. Gradients
  of tied distances are shared. Under jit the batch is the global one.

  Args:
    features: [B, D], of any length but 0.
    label: int32 [B].
    prototypes: [C, D], of any length but 0 where known; constants.
    known: bool [C].
    margin: Of the hinge.
  """
  f = prototypes_lib.unit(features.astype(jnp.float32))
  square = jnp.sum(f**2, axis=-1)
  similarity = jnp.matmul(f, f.T, precision=jax.lax.Precision.HIGHEST)
  distance = _root(square[:, None] + square[None, :] - 2 * similarity)  # [B, B]
  same = label[:, None] == label[None, :]
  hardest = jnp.max(jnp.where(same, distance, -jnp.inf), axis=1)
  others = jnp.min(jnp.where(same, jnp.inf, distance), axis=1)
  nearest = jnp.where(jnp.all(same, axis=1), hardest + margin, others)
  p = jax.lax.stop_gradient(prototypes_lib.unit(prototypes.astype(jnp.float32)))
  similarity = jnp.matmul(f, p.T, precision=jax.lax.Precision.HIGHEST)
  distance = _root(
    square[:, None] + jnp.sum(p**2, axis=-1)[None, :] - 2 * similarity
  )  # [B, C]
  old = jnp.min(jnp.where(known[None, :], distance, jnp.inf), axis=1)
  return jnp.mean(jax.nn.relu(hardest - jnp.minimum(nearest, old) + margin))


def _root(square: jax.Array) -> jax.Array:
  # Clamped before the root, whose gradient at 0 is infinite.
  return jnp.sqrt(jnp.maximum(square, 1e-12))
