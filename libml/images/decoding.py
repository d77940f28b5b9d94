"""Decodes image files as people see them: upright, and on white."""

import io
from typing import Any

import numpy as np
import tensorflow as tf

# A camera's note on how to turn a photo lies at the beginning of the file.
_HEADER_BYTES = 65536

# For orientations (EXIF tag 0x0112) 1 to 8: whether the upright image is the
# stored one transposed, then flipped up-down, then flipped left-right.
_TURNS = (
  (False, False, False),
  (False, False, True),
  (False, True, True),
  (False, True, False),
  (True, False, False),
  (True, False, True),
  (True, True, True),
  (True, True, False),
)


def decode(data: tf.Tensor) -> tf.Tensor:
  """Returns uint8 [H, W, 3] of the content of an image file.

  Files may be JPEG, which is turned as its EXIF orientation says; PNG, of which
  transparent parts are laid on white; WebP; BMP; or GIF (its first frame).

  Args:
    data: The bytes, string [].
  """
  kind = tf.strings.substr(data, 0, 4)
  image = tf.case(
    [
      (tf.strings.substr(data, 0, 2) == b"\xff\xd8", lambda: _jpeg(data)),
      (kind == b"\x89PNG", lambda: _png(data)),
      (kind == b"RIFF", lambda: _with_pillow(data)),
    ],
    default=lambda: tf.io.decode_image(
      data, channels=3, expand_animations=False
    ),
    exclusive=True,
  )
  return tf.ensure_shape(image, [None, None, 3])


def _jpeg(data: tf.Tensor) -> tf.Tensor:
  image = tf.io.decode_jpeg(data, channels=3)
  header = tf.strings.substr(data, 0, _HEADER_BYTES)
  turn = tf.numpy_function(_orientation, [header], tf.int32)
  turn = tf.ensure_shape(turn, [])
  branches = [_turned(image, *how) for how in _TURNS]
  return tf.switch_case(turn - 1, branches, default=lambda: image)


def _turned(image: tf.Tensor, transpose: bool, up: bool, left: bool):
  """Returns a function that turns the image."""

  def turn() -> tf.Tensor:
    turned = tf.transpose(image, [1, 0, 2]) if transpose else image
    axes = [axis for axis, flips in enumerate((up, left)) if flips]
    return tf.reverse(turned, axes) if axes else turned

  return turn


def _bytes(data: Any) -> bytes:
  """Returns the bytes that numpy_function gives: in eager mode, an array."""
  return np.asarray(data, object).item()


def _orientation(data: Any) -> np.int32:
  """Returns the EXIF orientation of a JPEG file; 1, upright, if it has none."""
  from PIL import Image

  header = _bytes(data)
  if b"Exif\0\0" not in header:
    return np.int32(1)
  try:
    return np.int32(Image.open(io.BytesIO(header)).getexif().get(0x0112, 1))
  except Exception:  # Pillow raises many kinds; the image itself is sound
    return np.int32(1)


def _png(data: tf.Tensor) -> tf.Tensor:
  image = tf.cast(tf.io.decode_png(data, channels=4), tf.int32)
  color, alpha = image[..., :3], image[..., 3:]
  on_white = (color * alpha + 255 * (255 - alpha) + 127) // 255
  return tf.cast(on_white, tf.uint8)


def _with_pillow(data: tf.Tensor) -> tf.Tensor:
  def read(data: Any) -> np.ndarray:
    from PIL import Image

    image = Image.open(io.BytesIO(_bytes(data))).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))

  return tf.numpy_function(read, [data], tf.uint8)
