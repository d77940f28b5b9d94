"""Heads of face recognition: from an embedding to logits with a margin.

All heads except softmax compute cosines: with the embedding e and the column
w_j of class j at unit length, cos_j = e w_j, and the logit is s cos_j, s the
scale. A margin lowers the true class's logit wherever a label is given: in
training, and in evaluation, as for the published accuracies.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from libml import vectors

_HIGHEST = jax.lax.Precision.HIGHEST


class Head(nn.Module):
  """Base class of the heads.

  Attributes:
    num_classes: C.
    param_dtype: Type of the parameters.
  """

  num_classes: int
  param_dtype: DTypeLike = jnp.float32

  # Whether training needs the label of each example.
  needs_label: ClassVar[bool] = True

  def __call__(
    self, x: jax.Array, label: jax.Array | None = None, *, train: bool = False
  ) -> dict[str, Any]:
    """Classifies embeddings.

    Args:
      x: [B, D], float32.
      label: int32 [B]; None: unknown.
      train: Whether this is a training step.

    Returns:
      "logits" [B, C]; "readings", {"_no_margin": logits [B, C]}, of heads with
      a margin; "loss" [B] of heads with their own loss, if the label is given.
      All of the type of x.

    Raises:
      ValueError: If the head needs the label and gets none in training, or
        probabilities instead of class ids.
    """
    if self.needs_label and label is None and train:
      raise ValueError(
        f"The head {type(self).__name__} needs the label of each image in"
        ' training and got none: give inputs["label"], int32 [batch], or set'
        ' model.head="softmax".'
      )
    if self.needs_label and label is not None and label.ndim != 1:
      raise ValueError(
        f"Labels have shape {label.shape}, but the head {type(self).__name__}"
        " takes one class id for each image: turn off mixup, cutmix and label"
        ' smoothing (config.mixing), or set model.head="softmax".'
      )
    return self.classify(x, label)

  def classify(self, x: jax.Array, label: jax.Array | None) -> dict[str, Any]:
    """Computes the outputs of `__call__`, which has checked the label."""
    raise NotImplementedError

  def kernel(self, x: jax.Array) -> jax.Array:
    """Declares and returns the columns [D, C], in the type of x."""
    return self.param(
      "kernel",
      nn.initializers.xavier_uniform(),
      (x.shape[-1], self.num_classes),
      self.param_dtype,
    ).astype(x.dtype)

  def cosines(self, x: jax.Array) -> jax.Array:
    """Returns the cosine [B, C] of each embedding and each column."""
    kernel = vectors.unit(self.kernel(x), axis=0)
    return jnp.matmul(vectors.unit(x), kernel, precision=_HIGHEST)


class Softmax(Head):
  """x W + b, without margin or scale."""

  needs_label: ClassVar[bool] = False

  @nn.compact
  def classify(self, x, label):
    """Returns only the logits."""
    del label
    bias = self.param(
      "bias", nn.initializers.zeros, (self.num_classes,), self.param_dtype
    ).astype(x.dtype)
    logits = jnp.matmul(x, self.kernel(x), precision=_HIGHEST)
    return {"logits": logits + bias[None]}


class Margin(Head):
  """Base of the heads that change the true class's cosine.

  Attributes:
    scale: s.
    margin: m.
  """

  scale: float = 64.0
  margin: float = 0.0

  def penalize(self, cosine: jax.Array) -> jax.Array:
    """Returns the cosines [B, C] with the margin applied."""
    raise NotImplementedError

  @nn.compact
  def classify(self, x, label):
    """Returns both readings; without label they are the same."""
    cosine = self.cosines(x)
    plain = logits = self.scale * cosine
    if label is not None:
      true = jax.nn.one_hot(label, self.num_classes, dtype=bool)
      logits = jnp.where(true, self.scale * self.penalize(cosine), plain)
    return {"logits": logits, "readings": {"_no_margin": plain}}


class CosFace(Margin):
  """Logits s (cos_j - m [j = y]) (Wang et al., CVPR 2018)."""

  margin: float = 0.35

  def penalize(self, cosine):
    """Returns cos - m."""
    return cosine - self.margin


class ArcFace(Margin):
  """Logits s cos(angle_j + m [j = y]) (Deng et al., CVPR 2019).

  Where the angle plus m exceeds pi, cos - m sin m is used instead.

  Attributes:
    easy_margin: Whether, instead of that, angles above pi / 2 get no margin.
  """

  margin: float = 0.5
  easy_margin: bool = False

  def penalize(self, cosine):
    """Returns cos(angle + m)."""
    # Rounding may give a cosine above 1; the root's gradient at 0 is infinite.
    sine = jnp.sqrt(jnp.maximum(1 - cosine**2, 1e-12))
    turned = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
    if self.easy_margin:
      return jnp.where(cosine > 0, turned, cosine)
    far = cosine - self.margin * math.sin(math.pi - self.margin)
    return jnp.where(cosine > math.cos(math.pi - self.margin), turned, far)


class SFace(Head):
  """Sigmoid-weighted cosines (Zhong et al., IEEE TIP 2021).

  With angles t_j and logits s cos_j without margin, the head has its own loss

    -p s cos_y + sum over j != y of q_j s cos_j,
    p = 1 / (1 + exp(-k (t_y - inner))),  q_j = 1 / (1 + exp(k (t_j - outer)))

  where p and q get no gradient.

  Attributes:
    scale: s.
    slope: k.
    inner: Angle to the true class, in radians, at which p is 1 / 2.
    outer: Angle to another class, in radians, at which q is 1 / 2.
  """

  scale: float = 64.0
  slope: float = 80.0
  inner: float = 0.80
  outer: float = 1.22

  @nn.compact
  def classify(self, x, label):
    """Returns logits, and the loss where the label is given."""
    cosine = self.cosines(x)
    outputs = {"logits": self.scale * cosine}
    if label is not None:
      angle = jnp.arccos(jnp.clip(jax.lax.stop_gradient(cosine), -1.0, 1.0))
      pull = jax.nn.sigmoid(self.slope * (angle - self.inner))
      push = jax.nn.sigmoid(self.slope * (self.outer - angle))
      true = jax.nn.one_hot(label, self.num_classes, dtype=bool)
      weights = jnp.where(true, -pull, push)
      outputs["loss"] = jnp.sum(weights * outputs["logits"], axis=-1)
    return outputs


# Name in a config -> head. The Face Transformer with overlapping patches has
# other angles.
HEADS: dict[str, Callable[..., Head]] = {
  "softmax": Softmax,
  "cosface": CosFace,
  "arcface": ArcFace,
  "arcface_easy": functools.partial(ArcFace, easy_margin=True),
  "sface": SFace,
  "sface_sliding": functools.partial(SFace, inner=0.90, outer=1.20),
}


def needs_label(kind: str) -> bool:
  """Returns whether a head trains with the label of each example.

  Args:
    kind: Key of HEADS.
  """
  return HEADS[kind](num_classes=1, parent=None).needs_label


def check(
  kind: str, *, scale: float | None = None, margin: float | None = None
) -> None:
  """Raises ValueError for arguments that `build` does not accept."""
  if kind not in HEADS:
    raise ValueError(f"Unknown head {kind!r}; known: {sorted(HEADS)}.")
  module = HEADS[kind](num_classes=1, parent=None)
  for option, value in (("scale", scale), ("margin", margin)):
    if value is not None and not hasattr(module, option):
      raise ValueError(
        f"model.{option}={value}, but the head {kind!r} has no {option}: set"
        f" model.{option}=None."
      )
  if scale is not None and not 0 < scale < math.inf:
    raise ValueError(f"model.scale={scale} must be a finite number above 0.")
  if margin is not None and not 0 <= margin < math.pi / 2:
    raise ValueError(
      f"model.margin={margin} must be at least 0 and below pi / 2."
    )


def build(
  kind: str,
  *,
  scale: float | None = None,
  margin: float | None = None,
  **options: Any,
) -> Head:
  """Returns a head.

  Args:
    kind: Key of HEADS.
    scale: Scale of the logits; None: the default of this head.
    margin: Margin; None: the default of this head.
    **options: Further fields of the head; num_classes is always needed.

  Raises:
    ValueError: An unknown name, a scale or margin that the head does not have,
      or one that is out of range.
  """
  check(kind, scale=scale, margin=margin)
  given = {"scale": scale, "margin": margin}
  given = {key: value for key, value in given.items() if value is not None}
  return HEADS[kind](**given, **options)
