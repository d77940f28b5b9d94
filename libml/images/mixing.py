"""Mixup, CutMix and label smoothing.

The result depends on the example, its partner and a seed only, not on how
examples are divided into batches or among processes.
"""

import dataclasses
from collections.abc import Mapping

import tensorflow as tf

from libml.images import image_ops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
  """Settings of mixup, CutMix and label smoothing.

  Any of them turns labels into probabilities. Mixup and CutMix combine each
  example with another one; if both are on, each example takes one of them with
  probability 1/2.

  mixup: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
  cutmix: Yun et al., "CutMix: Regularization Strategy to Train Strong
  Classifiers with Localizable Features", ICCV 2019.

  Attributes:
    num_classes: C, the length of a row of probabilities.
    mixup: The weight of an example is drawn from Beta(mixup, mixup); 0: off.
    cutmix: The share of an image's area that stays is drawn from Beta(cutmix,
      cutmix); 0: off.
    label_smoothing: Probability that is spread evenly over the classes of the
      stage's images. Other classes get none, because the loss may mask them.

  Raises:
    ValueError: A setting out of range.
  """

  num_classes: int
  mixup: float = 0.0
  cutmix: float = 0.0
  label_smoothing: float = 0.0

  def __post_init__(self):
    """Checks the fields."""
    for name in ("mixup", "cutmix"):
      if getattr(self, name) < 0:
        raise ValueError(
          f"mixing.{name}={getattr(self, name)} must be 0 (off) or more."
        )
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(
        f"mixing.label_smoothing={self.label_smoothing} must be at least 0 "
        "and less than 1."
      )

  @property
  def has_partners(self) -> bool:
    """Whether examples are mixed with others."""
    return bool(self.mixup or self.cutmix)

  @property
  def is_on(self) -> bool:
    """Whether labels are probabilities."""
    return bool(self.has_partners or self.label_smoothing)

  def soften(
    self, example: Mapping[str, tf.Tensor], present: tf.Tensor
  ) -> dict[str, tf.Tensor]:
    """Returns the example with its label as probabilities, float32 [C].

    Args:
      example: label int32 [].
      present: float32 [C], 1 at the classes among the stage's images.
    """
    certain = tf.one_hot(example["label"], self.num_classes)
    even = present / tf.reduce_sum(present)
    label = certain + self.label_smoothing * (even - certain)
    return {**example, "label": label}

  def mix(
    self,
    example: Mapping[str, tf.Tensor],
    other: Mapping[str, tf.Tensor],
    seed: tf.Tensor,
  ) -> dict[str, tf.Tensor]:
    """Returns the mixture of two examples.

    Args:
      example: image float32 [H, W, 3], label float32 [C].
      other: The partner, with entries of the same shapes.
      seed: int [2].
    """
    image = example["image"]
    which_seed, weight_seed, place_seed = tf.unstack(tf.random.split(seed, 3))

    def mixup() -> tuple[tf.Tensor, tf.Tensor]:
      weight = draw_beta(weight_seed, self.mixup)
      return other["image"] + weight * (image - other["image"]), weight

    def cutmix() -> tuple[tf.Tensor, tf.Tensor]:
      weight = draw_beta(weight_seed, self.cutmix)
      return paste(image, other["image"], weight, place_seed)

    if self.mixup and self.cutmix:
      chosen = tf.random.stateless_uniform([], which_seed) < 0.5
      image, weight = tf.cond(chosen, mixup, cutmix)
    else:
      image, weight = mixup() if self.mixup else cutmix()
    label = other["label"] + weight * (example["label"] - other["label"])
    return {**example, "image": image, "label": label}


def draw_beta(seed: tf.Tensor, alpha: float) -> tf.Tensor:
  """Draws from Beta(alpha, alpha), float32 [].

  Args:
    seed: int [2].
    alpha: Above 0.
  """
  # Draws of a small alpha underflow in float32; both could then be 0, so use
  # float64 and add a tiny number.
  draws = tf.random.stateless_gamma([2], seed, alpha, dtype=tf.float64)
  draws += tf.constant(1e-300, tf.float64)
  return tf.cast(draws[0] / tf.reduce_sum(draws), tf.float32)


def paste(
  image: tf.Tensor, other: tf.Tensor, weight: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Pastes a box of another image; the box has the image's aspect ratio.

  Args:
    image: float32 [H, W, 3].
    other: float32 [H, W, 3].
    weight: Share of the image's area that stays if the border does not cut the
      box.
    seed: int [2]; the box's centre is uniform over the image.

  Returns:
    The image, and the share of its area that stayed, float32 [].
  """
  height, width = image_ops.size(image)
  whole = tf.constant([height, width], tf.float32)
  size = whole * tf.sqrt(1.0 - weight)
  begin = tf.random.stateless_uniform([2], seed) * whole - size / 2
  first = tf.round(tf.maximum(begin, 0.0))
  last = tf.round(tf.minimum(begin + size, whole))
  box = last - first
  image = image_ops.fill_box(
    image, other, tf.cast(first, tf.int32), tf.cast(box, tf.int32)
  )
  return image, 1.0 - tf.reduce_prod(box / whole)
