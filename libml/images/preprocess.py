"""Turns an image file or array into the model's input, in TensorFlow.

Functions are deterministic in their example and seed. An example is a dict
whose "image" is a uint8 array or the contents of an image file. A chain decodes
it and maps it to float32 [size, size, 3] in 0 to 1. Optional augmentations
follow, then normalization by mean and standard deviation. Other entries of the
dict stay as they are.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from libml.images import augment
from libml.images import decoding

# TensorFlow would reserve GPU memory that JAX needs.
tf.config.set_visible_devices([], "GPU")


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """Training and evaluation chain with their settings.

  Attributes:
    size: Height and width in pixels of the model's input.
    train: Key of CHAINS_TRAIN.
    eval: Key of CHAINS_EVAL.
    resize: Side in pixels before the crop, in "reference" and "center_crop";
      None: size * 256 // 224, the usual ratio.
    mean: Subtracted from images in 0 to 1, one number per channel; None: images
      stay in 0 to 1.
    std: Divisor after that, one number per channel; None if mean is None.
    flip: Probability of a horizontal flip.
    area: Range of the random crop's share of the image's area.
    aspect: Range of the random crop's width / height.
    padding: Rows and columns of zeros that "crop_flip" adds in total, half of
      them on each side.
    antialias: Whether "random_resized_crop" and "center_crop" apply a low-pass
      filter when they shrink an image.
    randaugment: Number of RandAugment's operations per image, and their
      magnitude in 0 to 10; None: off.
    color_jitter: Strengths of brightness, contrast and saturation, 0 to 1, and
      of hue, 0 to 0.5; None: off.
    grayscale: Probability of a grey image.
    erase: Probability of erasing a box.
    erase_area: Range of the box's share of the image's area.
    erase_fill: "noise", or "mean" for the colour `mean` (0.5 if that is None).

  Raises:
    ValueError: An unknown chain or a setting out of range.
  """

  size: int
  train: str = "random_resized_crop"
  eval: str = "center_crop"
  resize: int | None = None
  mean: tuple[float, float, float] | None = None
  std: tuple[float, float, float] | None = None
  flip: float = 0.5
  area: tuple[float, float] = (0.05, 1.0)
  aspect: tuple[float, float] = (0.75, 1.33)
  padding: int = 4
  antialias: bool = False
  randaugment: tuple[int, float] | None = None
  color_jitter: tuple[float, float, float, float] | None = None
  grayscale: float = 0.0
  erase: float = 0.0
  erase_area: tuple[float, float] = (0.02, 0.33)
  erase_fill: str = "noise"

  def __post_init__(self):
    """Checks the fields."""
    for kind, name, table in (
      ("train", self.train, CHAINS_TRAIN),
      ("eval", self.eval, CHAINS_EVAL),
    ):
      if name not in table:
        raise ValueError(
          f"Unknown {kind} chain {name!r}. Known: {', '.join(sorted(table))}."
        )
    for name, valid, allowed in (
      ("size", self.size >= 1, "at least 1"),
      ("resize", self.side >= self.size, f"at least size {self.size}"),
      ("flip", 0 <= self.flip <= 1, "in 0 to 1"),
      ("area", 0 < self.area[0] <= self.area[1] <= 1, "0 < low <= high <= 1"),
      ("aspect", 0 < self.aspect[0] <= self.aspect[1], "0 < low <= high"),
      ("padding", self.padding >= 0, "at least 0"),
      ("mean", (self.mean is None) == (self.std is None), "given with std"),
      ("mean", self.mean is None or len(self.mean) == 3, "three numbers"),
      (
        "std",
        self.std is None or (len(self.std) == 3 and min(self.std) > 0),
        "three positive numbers",
      ),
      *self._optional_checks(),
    ):
      if not valid:
        raise ValueError(
          f"preprocess.{name}={getattr(self, name)!r} must be {allowed}."
        )

  def _optional_checks(self) -> tuple[tuple[str, bool, str], ...]:
    layers = self.randaugment or (1, 0.0)
    jitter = self.color_jitter or (0.0,) * 4
    low, high = self.erase_area
    return (
      (
        "randaugment",
        len(layers) == 2
        and isinstance(layers[0], int)
        and layers[0] >= 1
        and 0 <= layers[1] <= augment.MAX_MAGNITUDE,
        "(operations, magnitude in 0 to 10) or None",
      ),
      (
        "color_jitter",
        len(jitter) == 4
        and 0 <= min(jitter)
        and max(jitter) <= 1
        and jitter[3] <= 0.5,
        "(brightness, contrast, saturation, hue), each in 0 to 1 and hue at "
        "most 0.5, or None",
      ),
      ("grayscale", 0 <= self.grayscale <= 1, "in 0 to 1"),
      ("erase", 0 <= self.erase <= 1, "in 0 to 1"),
      ("erase_area", 0 < low <= high <= 1, "0 < low <= high <= 1"),
      (
        "erase_fill",
        self.erase_fill in ("noise", "mean"),
        "'noise' or 'mean'",
      ),
    )

  @property
  def side(self) -> int:
    """Height and width in pixels before the crop."""
    return self.size * 256 // 224 if self.resize is None else self.resize

  @property
  def augments(self) -> bool:
    """Whether an image differs from one epoch to the next."""
    random = (self.randaugment, self.color_jitter, self.grayscale, self.erase)
    return self.train != "none" or any(random)

  def train_fn(
    self, example: Mapping[str, tf.Tensor], seed: tf.Tensor
  ) -> dict[str, tf.Tensor]:
    """Returns the example with an augmented image.

    Args:
      example: "image" uint8 [H, W, 1 or 3], or the contents of an image file;
        other entries stay.
      seed: int [2], decides the augmentation.

    Returns:
      The example, "image" float32 [size, size, 3].
    """
    chain = CHAINS_TRAIN[self.train]
    image = self._checked(chain(self, example["image"], seed))
    image = self._normalize(self._augment(image, seed))
    return {**example, "image": image}

  def eval_fn(self, example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns the example without augmentation; see train_fn."""
    image = self._checked(CHAINS_EVAL[self.eval](self, example["image"]))
    return {**example, "image": self._normalize(image)}

  def _checked(self, image: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(image, [self.size, self.size, 3])

  def _augment(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    if self.randaugment:
      num_layers, magnitude = self.randaugment
      image = augment.randaugment(
        image,
        tf.random.fold_in(seed, 1),
        num_layers=num_layers,
        magnitude=magnitude,
      )
    if self.color_jitter:
      image = augment.color_jitter(
        image, tf.random.fold_in(seed, 2), strengths=self.color_jitter
      )
    if self.grayscale:
      image = augment.grayscale(
        image, tf.random.fold_in(seed, 4), probability=self.grayscale
      )
    if self.erase:
      mean = self.mean or (0.5, 0.5, 0.5)
      image = augment.erase(
        image,
        tf.random.fold_in(seed, 3),
        probability=self.erase,
        area=self.erase_area,
        fill=None if self.erase_fill == "noise" else mean,
      )
    return image

  def _normalize(self, image: tf.Tensor) -> tf.Tensor:
    if self.mean is None or self.std is None:
      return image
    # Normalize rows of pixels: TensorFlow is slow at broadcasting [3] to
    # [H, W, 3].
    rows = tf.reshape(image, [self.size, 3 * self.size])
    rows -= np.tile(np.array(self.mean, np.float32), self.size)
    rows /= np.tile(np.array(self.std, np.float32), self.size)
    return tf.reshape(rows, image.shape)


def decode(image: tf.Tensor) -> tf.Tensor:
  """Returns uint8 [H, W, 3] of a grey or colour array or an image file.

  Files are decoded as in decoding.decode.
  """
  if image.dtype == tf.string:
    return decoding.decode(image)
  if image.shape[-1] == 1:
    return tf.image.grayscale_to_rgb(image)
  return image


def _unit(image: tf.Tensor) -> tf.Tensor:
  return tf.cast(image, tf.float32) / 255.0


def _squash(chain: Preprocess, image: tf.Tensor) -> tf.Tensor:
  """Resizes to a square as L2P does: no antialiasing, truncated to uint8."""
  image = tf.image.resize(decode(image), [chain.side, chain.side])
  return tf.cast(image, tf.uint8)


def _center(image: tf.Tensor, size: int) -> tf.Tensor:
  start = (tf.shape(image)[:2] - size) // 2
  return tf.slice(image, [start[0], start[1], 0], [size, size, 3])


def _window(
  chain: Preprocess, shape: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Draws a random crop: its begin and its size, int32 [3] each."""
  begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
    shape,
    tf.zeros([0, 0, 4], tf.float32),
    seed=seed,
    # A value above 0 would raise the lower limit of the area.
    min_object_covered=0.0,
    aspect_ratio_range=chain.aspect,
    area_range=chain.area,
    max_attempts=100,
    use_image_if_no_bounding_boxes=True,
  )
  # A size of -1 stands for all channels.
  return begin, tf.concat([size[:2], [3]], axis=0)


def _crop_jpeg(
  chain: Preprocess, image: tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
  """Decodes only the part of a JPEG file that is needed."""
  begin, size = _window(chain, tf.io.extract_jpeg_shape(image), seed)
  window = tf.concat([begin[:2], size[:2]], axis=0)
  return tf.image.decode_and_crop_jpeg(image, window, channels=3)


def _crop(chain: Preprocess, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  image = decode(image)
  begin, size = _window(chain, tf.shape(image), seed)
  return tf.slice(image, begin, size)


def _flip(chain: Preprocess, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  flip = tf.random.stateless_uniform([], seed) < chain.flip
  return tf.cond(flip, lambda: tf.reverse(image, [1]), lambda: image)


def _train_reference(
  chain: Preprocess, image: tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
  """The chain of L2P and DualPrompt, including their JPEG round trip."""
  crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))
  image = tf.io.encode_jpeg(_squash(chain, image), quality=95)
  image = _unit(_crop_jpeg(chain, image, crop_seed))
  image = tf.image.resize(image, [chain.size, chain.size])
  return _flip(chain, image, flip_seed)


def _train_random_resized_crop(
  chain: Preprocess, image: tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
  """Resizes a random crop (Szegedy et al., 2015), and flips."""
  crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))
  if image.dtype == tf.string:
    crop = tf.cond(
      tf.io.is_jpeg(image),
      lambda: _crop_jpeg(chain, image, crop_seed),
      lambda: _crop(chain, image, crop_seed),
    )
  else:
    crop = _crop(chain, image, crop_seed)
  size = [chain.size, chain.size]
  crop = tf.image.resize(_unit(crop), size, antialias=chain.antialias)
  return _flip(chain, crop, flip_seed)


def _train_crop_flip(
  chain: Preprocess, image: tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
  """Shifts and flips an image that has the right size already."""
  crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))
  image = _native(chain, image)
  before, after = chain.padding // 2, chain.padding - chain.padding // 2
  image = tf.pad(image, [[before, after], [before, after], [0, 0]])
  shape = [chain.size, chain.size, 3]
  image = tf.image.stateless_random_crop(image, shape, crop_seed)
  return _flip(chain, image, flip_seed)


def _train_none(
  chain: Preprocess, image: tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
  del seed
  return CHAINS_EVAL[chain.eval](chain, image)


def _eval_reference(chain: Preprocess, image: tf.Tensor) -> tf.Tensor:
  """The chain of L2P and DualPrompt: resize to a square, centre crop."""
  return _center(_unit(_squash(chain, image)), chain.size)


def _eval_center_crop(chain: Preprocess, image: tf.Tensor) -> tf.Tensor:
  """Resizes the shorter side to `side` pixels, aspect kept; centre crop."""
  image = decode(image)
  shape = tf.cast(tf.shape(image)[:2], tf.float32)
  shape = tf.round(shape * (chain.side / tf.reduce_min(shape)))
  image = tf.image.resize(
    _unit(image), tf.cast(shape, tf.int32), antialias=chain.antialias
  )
  return _center(image, chain.size)


def _native(chain: Preprocess, image: tf.Tensor) -> tf.Tensor:
  """Returns the image without a change; it must have the right size already."""
  image = decode(image)
  shape = [chain.size, chain.size, 3]
  # Arrays are checked here, before the run; files when they are decoded.
  if not image.shape.is_compatible_with(shape):
    raise ValueError(
      f"Images are {image.shape}; the chains 'native' and 'crop_flip' need "
      f"{tuple(shape)}. Set preprocess.eval='center_crop' and "
      "preprocess.train='random_resized_crop', which resize."
    )
  return _unit(tf.ensure_shape(image, shape))


CHAINS_TRAIN: dict[str, Callable[..., tf.Tensor]] = {
  "reference": _train_reference,
  "random_resized_crop": _train_random_resized_crop,
  "crop_flip": _train_crop_flip,
  "none": _train_none,
}

CHAINS_EVAL: dict[str, Callable[..., tf.Tensor]] = {
  "reference": _eval_reference,
  "center_crop": _eval_center_crop,
  "native": _native,
}
