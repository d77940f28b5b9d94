"""The image operations of the augmentations, without random numbers.

Functions take and return images float32 [H, W, 3] with values in 0 to 1; H and
W are static. Where Pillow has the same operation, the results differ only by
Pillow's rounding.
"""

from typing import Any

import tensorflow as tf

# Grey level that `affine` gives to pixels from outside the image.
_FILL = 0.5


def size(image: tf.Tensor) -> tuple[int, int]:
  """Returns height and width in pixels."""
  # Any, because in TensorFlow's type stubs they may be unknown.
  shape: Any = image.shape
  return shape[0], shape[1]


def blend(first: tf.Tensor, second: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
  """Returns the first image at weight 0, the second at 1, clipped to 0 to 1."""
  return tf.clip_by_value(first + weight * (second - first), 0.0, 1.0)


def brightness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Returns black at factor 0, the image at 1."""
  return blend(tf.zeros_like(image), image, factor)


def contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Returns the mean grey at factor 0, the image at 1."""
  mean = tf.reduce_mean(tf.image.rgb_to_grayscale(image))
  return blend(tf.fill(image.shape, mean), image, factor)


def saturation(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Returns the grey image at factor 0, the image at 1."""
  return blend(tf.image.rgb_to_grayscale(image), image, factor)


def sharpness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
  """Returns a smoothed image at factor 0, the image at 1; the border stays."""
  rows = image[:-2] + image[1:-1] + image[2:]
  smooth = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
  inner = image[1:-1, 1:-1]
  smooth = (smooth + 4 * inner) / 13.0
  change = tf.pad((factor - 1) * (inner - smooth), [[1, 1], [1, 1], [0, 0]])
  return tf.clip_by_value(image + change, 0.0, 1.0)


def invert_above(image: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
  """Returns the image with all values from a threshold on inverted."""
  # tf.where takes many times as long.
  return tf.abs(tf.cast(image >= threshold, tf.float32) - image)


def posterize(image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
  """Returns the image with the highest `bits` bits of each 8-bit value."""
  step = tf.pow(2.0, 8.0 - tf.cast(bits, tf.float32))
  return tf.floor(tf.round(image * 255.0) / step) * step / 255.0


def autocontrast(image: tf.Tensor) -> tf.Tensor:
  """Returns each channel stretched to reach from 0 to 1."""
  low = tf.reduce_min(image, axis=[0, 1])
  high = tf.reduce_max(image, axis=[0, 1])
  # A channel of a single level stays.
  varies = high > low
  span = tf.where(varies, high - low, 1.0)
  low = tf.where(varies, low, 0.0)
  return (image - _along_rows(low, image)) / _along_rows(span, image)


def equalize(image: tf.Tensor) -> tf.Tensor:
  """Returns each channel with its 256 levels equally frequent."""
  levels = tf.cast(tf.round(image * 255.0), tf.int32)
  place = levels + _along_rows(256 * tf.range(3), image)
  counts = tf.math.bincount(
    tf.reshape(place, [-1]), minlength=768, maxlength=768
  )
  counts = tf.reshape(counts, [3, 256])
  highest = tf.reduce_max(levels, axis=[0, 1])
  last = tf.gather(counts, highest, axis=1, batch_dims=1)
  step = (tf.reduce_sum(counts, axis=1) - last)[:, None] // 255
  below = tf.cumsum(counts, axis=1, exclusive=True)
  table = (below + step // 2) // tf.maximum(step, 1)
  # A channel of a single level has no step and stays.
  table = tf.where(step > 0, tf.minimum(table, 255), tf.range(256))
  return tf.cast(tf.gather(tf.reshape(table, [-1]), place), tf.float32) / 255.0


def _along_rows(numbers: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
  """Repeats three numbers for each pixel of a row, [1, W, 3]."""
  _, width = size(image)
  # TensorFlow is slow at broadcasting [3] to [H, W, 3].
  return tf.reshape(tf.tile(numbers, [width]), [1, width, 3])


def affine(
  image: tf.Tensor,
  matrix: tuple[tuple[tf.Tensor | float, ...], ...],
  shift: tuple[tf.Tensor | float, tf.Tensor | float] = (0.0, 0.0),
) -> tf.Tensor:
  """Transforms the image about its centre, with bilinear interpolation.

  Pixels from outside the image are grey.

  Args:
    image: float32 [H, W, 3].
    matrix: ((xx, xy), (yx, yy)); maps a position (x, y) in the result to the
      position in the image that it shows. Both count from the centre.
    shift: (x, y) in pixels, added to the position in the image.
  """
  height, width = size(image)
  x, y = (width - 1) / 2, (height - 1) / 2
  (xx, xy), (yx, yy) = matrix
  rows = [
    [xx, xy, shift[0] + x - xx * x - xy * y],
    [yx, yy, shift[1] + y - yx * x - yy * y],
  ]
  transform = [tf.cast(entry, tf.float32) for row in rows for entry in row]
  return tf.raw_ops.ImageProjectiveTransformV3(
    images=image[None],
    transforms=tf.stack([*transform, 0.0, 0.0])[None],
    output_shape=tf.constant([height, width]),
    interpolation="BILINEAR",
    fill_mode="CONSTANT",
    fill_value=_FILL,
  )[0]


def rotate(image: tf.Tensor, angle: tf.Tensor) -> tf.Tensor:
  """Returns the image turned about its centre by an angle in radians."""
  cos, sin = tf.cos(angle), tf.sin(angle)
  return affine(image, ((cos, -sin), (sin, cos)))


def shear(
  image: tf.Tensor, x: tf.Tensor | float, y: tf.Tensor | float
) -> tf.Tensor:
  """Shears the image: x pixels per row, y pixels per column."""
  return affine(image, ((1.0, x), (y, 1.0)))


def translate(
  image: tf.Tensor, x: tf.Tensor | float, y: tf.Tensor | float
) -> tf.Tensor:
  """Shifts the image by the fractions x of its width and y of its height."""
  height, width = size(image)
  return affine(image, ((1.0, 0.0), (0.0, 1.0)), (x * width, y * height))


def fill_box(
  image: tf.Tensor, other: tf.Tensor, begin: tf.Tensor, extent: tf.Tensor
) -> tf.Tensor:
  """Copies a box of another image into the image.

  Args:
    image: [H, W, 3].
    other: [H, W, 3], or an array that broadcasts to it.
    begin: int32 [2], first row and column of the box; may lie outside.
    extent: int32 [2], rows and columns; the box is cut at the image's border.
  """
  rows, columns = (
    (at >= begin[axis]) & (at < begin[axis] + extent[axis])
    for axis, at in enumerate(map(tf.range, size(image)))
  )
  inside = tf.cast(rows[:, None, None] & columns[None, :, None], image.dtype)
  return image * (1 - inside) + other * inside
