"""Losses and their parts."""

import jax
import jax.numpy as jnp

# Finite, so that a probability of 0 times the masked value is 0. Its exp is
# exactly 0 in every float type, so a masked column gets no gradient.
_MASKED = -1e9


def mask_logits(logits: jax.Array, allowed: jax.Array) -> jax.Array:
  """Returns logits with -1e9 for classes that are not allowed.

  Args:
    logits: [B, C].
    allowed: bool [C], or [B or 1, C].
  """
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


def distillation(
  student: jax.Array, teacher: jax.Array, temperature: float = 1.0
) -> jax.Array:
  """Returns T^2 times the mean of KL(teacher || student) at temperature T.

  Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; as in LwF
  and SCRUB.

  Args:
    student: Logits [B, C].
    teacher: Logits [B, C], with the same classes masked.
    temperature: T, by which both logits are divided.
  """
  wide = jnp.promote_types(student.dtype, jnp.float32)
  log_q = jax.nn.log_softmax(student.astype(wide) / temperature, axis=-1)
  log_p = jax.nn.log_softmax(teacher.astype(wide) / temperature, axis=-1)
  kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
  return temperature**2 * jnp.mean(kl)


def norm(x: jax.Array, axis: int | None = None) -> jax.Array:
  """Returns Euclidean norms, whose gradient at 0 is 0 and not NaN."""
  square = jnp.sum(x**2, axis=axis)
  safe = jnp.where(square > 0, square, 1.0)
  return jnp.where(square > 0, jnp.sqrt(safe), 0.0)
