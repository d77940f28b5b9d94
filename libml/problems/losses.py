"""Losses and their parts, as pure functions of arrays."""

import jax
import jax.numpy as jnp

from libml.problems import prototypes as prototypes_lib

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


def distillation(
  student: jax.Array, teacher: jax.Array, temperature: float = 1.0
) -> jax.Array:
  """Returns T^2 times the mean KL of teacher to student at temperature T.

  Hinton et al., 2015; as in LwF and SCRUB.

  Args:
    student: Logits [B, C].
    teacher: Logits [B, C], masked where the student's are.
    temperature: T.
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


def attention_map(tokens: jax.Array, least: float = 0.005) -> jax.Array:
  """Returns the mean square of tokens [B, T, D], at unit length, [B, D].

  Entries below `least` are 0 (LIRF: Ye et al., ECCV 2022, whose maps are of
  convolutions; as the GS-LoRA code applies it to tokens).
  """
  square = jnp.mean(tokens**2, axis=1)
  length = jnp.sqrt(jnp.sum(square**2, axis=-1, keepdims=True))
  unit = square / jnp.maximum(length, 1e-12)
  return jnp.where(unit < least, 0.0, unit)
