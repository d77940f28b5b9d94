"""Prototypes (class means of features), and prediction of the nearest one."""

import jax
import jax.numpy as jnp

from libml import trees
from libml import vectors


def class_sums(
  features: jax.Array, label: jax.Array, mask: jax.Array, num_classes: int
) -> dict[str, jax.Array]:
  """Returns the sums of a batch's features by class, at least float32.

  Args:
    features: [B, D].
    label: int32 [B].
    mask: bool [B], whether a row counts.
    num_classes: C.

  Returns:
    "sums" [C, D] and "counts" [C].
  """
  member = jax.nn.one_hot(label, num_classes) * mask[:, None]  # [B, C]
  features = trees.widened(features)
  sums = jnp.matmul(
    member.T.astype(features.dtype),
    features,
    precision=jax.lax.Precision.HIGHEST,
  )
  return {"sums": sums, "counts": member.sum(axis=0)}


def means(sums: jax.Array, counts: jax.Array) -> jax.Array:
  """Returns sums [C, D] over counts [C]; 0 for a class without an image."""
  return sums / jnp.maximum(counts, 1)[:, None]


def cosine_logits(
  features: jax.Array, prototypes: jax.Array, known: jax.Array
) -> jax.Array:
  """Returns the cosine of each feature with each prototype, [B, C].

  The largest cosine belongs to the prototype that is nearest on the unit
  sphere. Classes without a prototype get -2, so that they are never predicted.

  Args:
    features: [B, D].
    prototypes: [C, D].
    known: bool [C], whether a class has a prototype.
  """
  cosine = jnp.matmul(
    vectors.unit(features),
    vectors.unit(prototypes).T,
    precision=jax.lax.Precision.HIGHEST,
  )
  return jnp.where(known[None, :], cosine, -2.0)


def kl_divergence(features: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns the mean over rows of KL(softmax(target) || softmax(feature)).

  Both softmaxes are over the D dimensions of a feature (GS-LoRA++).

  Args:
    features: [B, D].
    targets: [B, D], such as each row's class mean.
  """
  p = jax.nn.log_softmax(trees.widened(targets), axis=-1)
  q = jax.nn.log_softmax(trees.widened(features), axis=-1)
  return jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1))


def mean_square(features: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns the mean squared difference over all entries of [B, D]."""
  return jnp.mean(trees.widened(features - targets) ** 2)


DISTANCES = {"kl": kl_divergence, "l2": mean_square}
