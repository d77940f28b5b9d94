"""Optional augmentations: RandAugment, colour jitter, grey, random erasing.

Each function is deterministic in its image and seed. It takes and returns an
image float32 [H, W, 3] with values in 0 to 1; H and W are static.
"""

import functools
import math
from collections.abc import Callable

import tensorflow as tf

from libml.images import image_ops

# Largest magnitude of RandAugment.
MAX_MAGNITUDE = 10.0

# Operations of color_jitter, each with the value that leaves an image as it is.
_JITTER = (
  (image_ops.brightness, 1.0),
  (image_ops.contrast, 1.0),
  (image_ops.saturation, 1.0),
  (tf.image.adjust_hue, 0.0),
)

# RandAugment's operations, functions of an image and an amount. The amount is
# magnitude / 10 with a random sign; operations without a direction use its
# absolute value. Every operation gets stronger with the magnitude. In the
# authors' code "solarize" and "posterize" get weaker; later code corrects that.
RANDAUGMENT: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
  "identity": lambda image, amount: image,
  "autocontrast": lambda image, amount: image_ops.autocontrast(image),
  "equalize": lambda image, amount: image_ops.equalize(image),
  "rotate": lambda image, amount: image_ops.rotate(
    image, amount * math.radians(30)
  ),
  "solarize": lambda image, amount: image_ops.invert_above(
    image, 256 / 255 * (1 - abs(amount))
  ),
  "posterize": lambda image, amount: image_ops.posterize(
    image, 8 - tf.round(4 * abs(amount))
  ),
  "color": lambda image, amount: image_ops.saturation(image, 1 + 0.9 * amount),
  "contrast": lambda image, amount: image_ops.contrast(image, 1 + 0.9 * amount),
  "brightness": lambda image, amount: image_ops.brightness(
    image, 1 + 0.9 * amount
  ),
  "sharpness": lambda image, amount: image_ops.sharpness(
    image, 1 + 0.9 * amount
  ),
  "shear_x": lambda image, amount: image_ops.shear(image, 0.3 * amount, 0.0),
  "shear_y": lambda image, amount: image_ops.shear(image, 0.0, 0.3 * amount),
  "translate_x": lambda image, amount: image_ops.translate(
    image, 0.45 * amount, 0.0
  ),
  "translate_y": lambda image, amount: image_ops.translate(
    image, 0.0, 0.45 * amount
  ),
}


def randaugment(
  image: tf.Tensor, seed: tf.Tensor, *, num_layers: int, magnitude: float
) -> tf.Tensor:
  """Applies random operations of RANDAUGMENT, one after the other.

  Cubuk et al., "RandAugment: Practical automated data augmentation with a
  reduced search space", 2020.

  Args:
    image: float32 [H, W, 3].
    seed: int [2].
    num_layers: Number of operations.
    magnitude: Strength of each, 0 to 10.
  """
  amount = magnitude / MAX_MAGNITUDE
  for layer in range(num_layers):
    which_seed, sign_seed = _split(tf.random.fold_in(seed, layer), 2)
    which = tf.random.stateless_uniform(
      [], which_seed, 0, len(RANDAUGMENT), dtype=tf.int32
    )
    positive = tf.random.stateless_uniform([], sign_seed) < 0.5
    signed = tf.where(positive, amount, -amount)
    image = tf.switch_case(
      which,
      [functools.partial(op, image, signed) for op in RANDAUGMENT.values()],
    )
  return image


def color_jitter(
  image: tf.Tensor,
  seed: tf.Tensor,
  *,
  strengths: tuple[float, float, float, float],
) -> tf.Tensor:
  """Changes brightness, contrast, saturation and hue, in random order.

  Args:
    image: float32 [H, W, 3].
    seed: int [2].
    strengths: (brightness, contrast, saturation, hue). The first three factors
      are uniform in 1 - strength to 1 + strength; the shift of hue is uniform
      in -strength to strength, where 1 is the full circle. 0: off.
  """
  order_seed, *seeds = _split(seed, 1 + len(strengths))
  changes = [
    (
      change,
      neutral + tf.random.stateless_uniform([], seed, -strength, strength),
    )
    for (change, neutral), strength, seed in zip(
      _JITTER, strengths, seeds, strict=True
    )
    if strength
  ]
  order = tf.range(len(changes))
  order = tf.random.experimental.stateless_shuffle(order, order_seed)
  for position in range(len(changes)):
    image = tf.switch_case(
      order[position],
      [functools.partial(change, image, how) for change, how in changes],
    )
  return image


def grayscale(
  image: tf.Tensor, seed: tf.Tensor, *, probability: float
) -> tf.Tensor:
  """Sets all channels to the luma (ITU-R BT.601), with some probability.

  Args:
    image: float32 [H, W, 3].
    seed: int [2].
    probability: Probability that the image becomes grey.
  """
  chosen = tf.random.stateless_uniform([], seed) < probability

  def grey() -> tf.Tensor:
    return tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image))

  return tf.cond(chosen, grey, lambda: image)


def erase(
  image: tf.Tensor,
  seed: tf.Tensor,
  *,
  probability: float,
  area: tuple[float, float],
  fill: tuple[float, float, float] | None,
) -> tf.Tensor:
  """Overwrites a random box of the image, with some probability.

  Zhong et al., "Random Erasing Data Augmentation", 2020. The box's height /
  width is log-uniform in 0.3 to 1 / 0.3.

  Args:
    image: float32 [H, W, 3].
    seed: int [2].
    probability: Probability that a box is overwritten.
    area: Range of the box's share of the image's area.
    fill: Colour of the box; None: noise, uniform in 0 to 1.
  """
  chance_seed, shape_seed, place_seed, noise_seed = _split(seed, 4)

  def overwrite() -> tf.Tensor:
    begin, size = _box(image, shape_seed, place_seed, area)
    other = (
      tf.random.stateless_uniform(image.shape, noise_seed)
      if fill is None
      else tf.constant(fill)
    )
    return image_ops.fill_box(image, other, begin, size)

  chosen = tf.random.stateless_uniform([], chance_seed) < probability
  return tf.cond(chosen, overwrite, lambda: image)


def _box(
  image: tf.Tensor,
  shape_seed: tf.Tensor,
  place_seed: tf.Tensor,
  area: tuple[float, float],
) -> tuple[tf.Tensor, tf.Tensor]:
  """Draws begin and size, int32 [2] each, of a box inside the image."""
  height, width = image_ops.size(image)
  # The paper draws until a box fits. Here the first of 20 draws that fits is
  # taken; if none does, the box is empty.
  draws = tf.random.stateless_uniform([2, 20], shape_seed)
  parts = height * width * (area[0] + draws[0] * (area[1] - area[0]))
  aspects = tf.exp((2 * draws[1] - 1) * math.log(1 / 0.3))
  sizes = tf.round(tf.sqrt([parts * aspects, parts / aspects]))
  fits = tf.reduce_all(sizes <= [[height], [width]], axis=0)
  size = sizes[:, tf.argmax(tf.cast(fits, tf.int32))] * tf.cast(
    tf.reduce_any(fits), tf.float32
  )
  room = tf.constant([height, width], tf.float32) - size + 1
  begin = tf.floor(tf.random.stateless_uniform([2], place_seed) * room)
  return tf.cast(begin, tf.int32), tf.cast(size, tf.int32)


def _split(seed: tf.Tensor, count: int) -> list[tf.Tensor]:
  return tf.unstack(tf.random.split(seed, count))
