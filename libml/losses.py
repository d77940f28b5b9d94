"""Losses and their parts, as pure functions of arrays."""

import jax
import jax.numpy as jnp

# Finite, so that 0 * mask stays 0 where labels are probabilities; exp of it
# is exactly 0 in every float type, so a masked column gets no gradient.
_MASKED = -1e9


def mask_logits(logits: jax.Array, allowed: jax.Array) -> jax.Array:
  """Returns logits [B, C], masked outside allowed bool [C], or [B or 1, C]."""
  allowed = allowed if allowed.ndim == 2 else allowed[None, :]
  return jnp.where(allowed, logits, _MASKED)


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Returns the cross entropy of each row, float32 [B].

  Args:
    logits: [B, C].
    label: int32 [B], or probabilities [B, C].
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  if label.ndim == 2:
    return -jnp.sum(label * log_probs, axis=-1)
  return -jnp.take_along_axis(log_probs, label[:, None], axis=-1)[:, 0]
