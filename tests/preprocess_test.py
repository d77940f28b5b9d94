"""The chains: reference figures, ranges of the random parts, bad settings."""

import io
import json
import re

import figures
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from PIL import ImageOps

from libml.datasets import tfds_rows
from libml.images import preprocess
from libml.images.preprocess import Preprocess

_STATS = {
  "01": {},
  "cifar10 mean and std": {
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2471, 0.2435, 0.2616),
  },
  "cifar100 mean and std": {
    "mean": (0.5071, 0.4867, 0.4408),
    "std": (0.2675, 0.2565, 0.2761),
  },
}
FIGURES = {"l2p/preprocess": {}}
_CASES = figures.cases(*FIGURES, r"out/([^/]+)/image")


def _noise(height, width, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, channels), np.uint8)


def _places(side):
  """An image whose red and green are its column and row, side <= 256."""
  at = np.arange(side, dtype=np.uint8)
  columns, rows = np.meshgrid(at, at)
  return np.stack([columns, rows, 0 * rows], axis=-1)


def _train(chain, image, seeds):
  fn = tf.function(chain.train_fn, reduce_retracing=True)
  image = tf.constant(image)
  seeds = tf.constant([[7, s] for s in seeds], tf.int64)
  return [fn({"image": image}, seed)["image"].numpy() for seed in seeds]


def _evaluated(chain, image):
  return chain.eval_fn({"image": tf.constant(image)})["image"].numpy()


@pytest.fixture
def reference(golden):
  """Returns the stored arrays, and the config of each case."""
  data = golden("l2p", "preprocess")
  return data, json.loads(str(data["in/config"]))


def test_golden_cases_are_all_tested(reference):
  assert set(_CASES) == set(reference[1])


@pytest.mark.parametrize("case", _CASES)
def test_eval_equals_the_reference(reference, case):
  data, configs = reference
  config = configs[case]
  expected = data[f"out/{case}/image"]
  if config["crop"] is not None:
    assert expected.shape[1:] == (config["crop"], config["crop"], 3)
  chain = Preprocess(
    size=expected.shape[1],
    eval="native" if config["resize"] is None else "reference",
    resize=config["resize"],
    **_STATS[config["normalize"]],
  )
  if config["input"] == "ragged":
    images = [data[f"in/ragged/{i}"] for i in range(len(expected))]
  else:
    images = data[f"in/{config['input']}"]
  found = np.stack([_evaluated(chain, image) for image in images])
  assert found.dtype == np.float32
  # The README of the golden folder allows one grey level in 1.5 % of values.
  level = 1.01 / 255 / np.array(chain.std or 1.0)
  assert np.all(abs(found - expected) <= level)
  assert np.mean(abs(found - expected) > 1e-6) <= 0.015


@pytest.mark.parametrize("case", _CASES)
def test_labels_are_those_of_the_reference(reference, case):
  data, configs = reference
  source = configs[case].get("label_source", "label")
  label = data[f"in/{source}"]
  if source == "imagenet_r_label":
    label = [tfds_rows.IMAGENET_R_IDS.index(number) for number in label]
  # A collection's later data sets count on from the classes before them.
  label = np.add(label, configs[case].get("label_offset", 0))
  np.testing.assert_array_equal(label, data[f"out/{case}/label"])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("train", sorted(preprocess.CHAINS_TRAIN))
def test_training_is_a_function_of_the_seed(train, channels):
  chain = Preprocess(size=24, train=train, eval="native", resize=32)
  image = _noise(24, 24, channels)
  first, again, *others = _train(chain, image, [1, 1, 2, 3, 4])
  assert first.shape == (24, 24, 3) and first.dtype == np.float32
  assert first.min() >= 0 and first.max() <= 1
  np.testing.assert_array_equal(first, again)
  differ = [not np.array_equal(first, other) for other in others]
  assert all(differ) != (train == "none")
  if train == "none":
    evaluated = _evaluated(chain, image)
    np.testing.assert_allclose(first, evaluated, rtol=1e-6)


@pytest.mark.parametrize("train", ["reference", "random_resized_crop"])
def test_random_crops_cover_the_range_of_areas(train):
  chain = Preprocess(
    size=128, train=train, resize=128, area=(0.05, 0.5), flip=0.0
  )
  areas, aspects, lefts = [], [], []
  for image in _train(chain, _places(128), range(150)):
    # Means of the outer rows: JPEG noise goes, position stays.
    left, right = 255 * image[:, [0, -1], 0].mean(0)
    top, bottom = 255 * image[[0, -1], :, 1].mean(1)
    width, height = right - left + 1, bottom - top + 1
    areas.append(width * height / 128**2)
    aspects.append(width / height)
    lefts.append(left)
  assert 0.04 < min(areas) < 0.08 and 0.42 < max(areas) < 0.53
  assert 0.70 < min(aspects) < 0.82 and 1.22 < max(aspects) < 1.42
  assert min(lefts) < 8 and max(lefts) > 60


@pytest.mark.parametrize("train", ["reference", "random_resized_crop"])
def test_whole_image_as_crop_is_the_resized_image(train):
  image = tf.image.resize(_noise(5, 5), [32, 32]).numpy().astype(np.uint8)
  chain = Preprocess(size=32, train=train, resize=32, area=(1, 1), flip=0.0)
  flipped = Preprocess(size=32, train=train, resize=32, area=(1, 1), flip=1.0)
  (found,), (mirror,) = (_train(c, image, [0]) for c in (chain, flipped))
  np.testing.assert_array_equal(found, mirror[:, ::-1])
  # JPEG at quality 95 with halved chroma is what "reference" must show.
  error = abs(found - image / np.float32(255)).mean()
  assert (0.001 < error < 0.03) if train == "reference" else error < 1e-6


def test_flip_has_its_probability():
  image = _noise(8, 8)
  chain = Preprocess(
    size=8, train="crop_flip", eval="native", padding=0, flip=0.25
  )
  plain = image / np.float32(255)
  flips = [
    not np.allclose(found, plain) for found in _train(chain, image, range(400))
  ]
  assert 70 < sum(flips) < 130


@pytest.mark.parametrize("padding", [3, 4])
def test_crop_flip_reaches_every_shift(padding):
  image = _noise(8, 8)
  before = padding // 2
  padded = np.pad(
    image, [(before, padding - before), (before, padding - before), (0, 0)]
  )
  windows = {
    padded[y : y + 8, x : x + 8].tobytes()
    for y in range(padding + 1)
    for x in range(padding + 1)
  }
  chain = Preprocess(
    size=8, train="crop_flip", eval="native", padding=padding, flip=0.0
  )
  found = {
    np.rint(255 * i).astype(np.uint8).tobytes()
    for i in _train(chain, image, range(300))
  }
  assert found == windows


def test_files_and_arrays_give_the_same_crop():
  image = tf.image.resize(_noise(9, 7), [90, 70])
  jpeg = tf.io.encode_jpeg(tf.cast(image, tf.uint8), quality=95)
  array = tf.io.decode_jpeg(jpeg)
  png = tf.io.encode_png(array)
  chain = Preprocess(size=32)
  for seed in range(5):
    (a,), (b,), (c,) = (_train(chain, x, [seed]) for x in (array, png, jpeg))
    np.testing.assert_array_equal(a, b)
    # A JPEG decoder rounds differently at the border of a part.
    assert abs(a - c).mean() < 2e-3


def test_center_crop_keeps_the_aspect():
  image = np.repeat(_places(20), 2, axis=1)  # 20 rows, 40 columns
  chain = Preprocess(size=20, resize=20)
  found = _evaluated(chain, image)
  np.testing.assert_allclose(found, image[:, 10:30] / np.float32(255))
  large = _evaluated(Preprocess(size=28, resize=32), image)
  assert large.shape == (28, 28, 3)


def test_antialias_is_an_option():
  image = _noise(64, 64)
  blunt = _evaluated(Preprocess(size=14, antialias=True), image)
  sharp = _evaluated(Preprocess(size=14), image)
  assert blunt.std() < 0.7 * sharp.std()


def test_default_side_is_the_usual_ratio():
  assert Preprocess(size=224).side == 256


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"train": "crop"}, "Unknown train chain 'crop'. Known: crop_flip"),
    ({"eval": "crop"}, "Unknown eval chain 'crop'. Known: center_crop"),
    ({"resize": 16}, "resize=16 must be at least size 32"),
    ({"flip": 1.5}, "flip=1.5"),
    ({"area": (0.0, 1.0)}, "area"),
    ({"aspect": (1.2, 0.8)}, "aspect"),
    ({"padding": -1}, "padding=-1"),
    ({"mean": (0.5, 0.5, 0.5)}, "given with std"),
    ({"mean": (0.5, 0.5, 0.5), "std": (0.0, 1.0, 1.0)}, "positive"),
    ({"randaugment": (2, 11.0)}, "randaugment=(2, 11.0) must be (operati"),
    ({"randaugment": (0, 5.0)}, "randaugment=(0, 5.0)"),
    ({"randaugment": (1.5, 5.0)}, "randaugment=(1.5, 5.0)"),
    ({"randaugment": (2,)}, "randaugment=(2,)"),
    ({"color_jitter": (0.4, 0.4, 0.4)}, "color_jitter=(0.4, 0.4, 0.4) must"),
    ({"color_jitter": (1.1, 0.0, 0.0, 0.0)}, "color_jitter=(1.1"),
    ({"color_jitter": (0.0, 0.0, 0.0, 0.6)}, "hue at most 0.5"),
    ({"grayscale": -0.1}, "grayscale=-0.1 must be in 0 to 1"),
    ({"erase": 2.0}, "erase=2.0 must be in 0 to 1"),
    ({"erase_area": (0.3, 0.2)}, "erase_area=(0.3, 0.2)"),
    ({"erase_fill": "white"}, "erase_fill='white' must be 'noise' or"),
  ],
)
def test_bad_settings_are_named(options, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    Preprocess(size=32, **options)


@pytest.mark.parametrize("size", [28, 64])
def test_native_chain_refuses_another_size(size):
  chain = Preprocess(size=32, train="crop_flip", eval="native")
  image = tf.constant(_noise(size, size))
  file = tf.io.encode_png(image)
  seed = tf.constant([0, 0])
  for fn in (chain.eval_fn, lambda example: chain.train_fn(example, seed)):
    with pytest.raises(ValueError, match=r"need \(32, 32, 3\). Set prep"):
      fn({"image": image})
    message = rf"\[{size},{size},3\] .* expected shape \[32,32,3\]"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
      tf.function(fn)({"image": file})


def encoded(image, **options):
  """Returns the bytes of a picture's file."""
  file = io.BytesIO()
  image.save(file, **options)
  return tf.constant(file.getvalue())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(orientation):
  pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
  stored, exif = Image.fromarray(pixels), Image.Exif()
  plain = preprocess.decode(encoded(stored, format="jpeg"))
  exif[0x0112] = orientation
  wanted = Image.fromarray(plain.numpy())
  wanted.getexif()[0x0112] = orientation
  found = preprocess.decode(encoded(stored, format="jpeg", exif=exif))
  np.testing.assert_array_equal(found, ImageOps.exif_transpose(wanted))


def test_transparent_parts_lie_on_white():
  pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 4), np.uint8)
  pixels[0, :, 3], pixels[1, :, 3] = 0, 255
  found = preprocess.decode(encoded(Image.fromarray(pixels), format="png"))
  assert (found[0] == 255).numpy().all()
  np.testing.assert_array_equal(found[1], pixels[1, :, :3])
  alpha = pixels[..., 3:] / 255
  wanted = pixels[..., :3] * alpha + 255 * (1 - alpha)
  assert abs(np.float64(found) - wanted).max() <= 0.5


def test_webp_is_read():
  pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
  data = encoded(Image.fromarray(pixels), format="webp", lossless=True)
  np.testing.assert_array_equal(preprocess.decode(data), pixels)
