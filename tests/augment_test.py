"""Augmentations: Pillow's figures, the ranges they draw from, one seed."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from PIL import ImageEnhance
from PIL import ImageOps

from libml.images import augment
from libml.images import image_ops
from libml.images.preprocess import Preprocess


@pytest.fixture(scope="module")
def photos(real_data):
  """Returns some real images, uint8 [N, 32, 32, 3]."""
  with np.load(real_data / "cifar10_6k" / "cifar10_6k.npz") as file:
    return file["x_test"][[0, 250, 999]]


@pytest.fixture(scope="module")
def drawn():
  """Returns made-up images: smooth, of one level, of two levels, noise."""
  rng = np.random.default_rng(0)
  image = tf.image.resize(rng.integers(0, 256, (4, 5, 3)), [24, 30], "bicubic")
  smooth = np.clip(image.numpy(), 20, 200).astype(np.uint8)
  flat = np.full((24, 30, 3), 7, np.uint8)
  noise = rng.integers(0, 256, (24, 30, 3), np.uint8)
  return [smooth, flat, np.where(noise > 99, 250, 3).astype(np.uint8), noise]


def _unit(image):
  return tf.constant(image / np.float32(255))


def _seed(number):
  return tf.constant([number, 5], tf.int64)


def _apply(fn, image, count, **options):
  """Returns the image augmented with `count` seeds."""
  run = tf.function(functools.partial(fn, **options), reduce_retracing=True)
  return [run(image, _seed(number)).numpy() for number in range(count)]


PILLOW = {
  "brightness": (
    lambda i: image_ops.brightness(i, 1.6),
    lambda i: ImageEnhance.Brightness(i).enhance(1.6),
  ),
  "contrast": (
    lambda i: image_ops.contrast(i, 0.3),
    lambda i: ImageEnhance.Contrast(i).enhance(0.3),
  ),
  "more contrast": (
    lambda i: image_ops.contrast(i, 1.9),
    lambda i: ImageEnhance.Contrast(i).enhance(1.9),
  ),
  "saturation": (
    lambda i: image_ops.saturation(i, 0.2),
    lambda i: ImageEnhance.Color(i).enhance(0.2),
  ),
  "sharpness": (
    lambda i: image_ops.sharpness(i, 1.8),
    lambda i: ImageEnhance.Sharpness(i).enhance(1.8),
  ),
  "smoothness": (
    lambda i: image_ops.sharpness(i, 0.1),
    lambda i: ImageEnhance.Sharpness(i).enhance(0.1),
  ),
  "solarize": (
    lambda i: image_ops.invert_above(i, 100 / 255),
    lambda i: ImageOps.solarize(i, 100),
  ),
  "posterize": (
    lambda i: image_ops.posterize(i, 3),
    lambda i: ImageOps.posterize(i, 3),
  ),
  "autocontrast": (image_ops.autocontrast, ImageOps.autocontrast),
  "equalize": (image_ops.equalize, ImageOps.equalize),
  "rotate": (
    lambda i: image_ops.rotate(i, math.radians(30)),
    lambda i: i.rotate(30, Image.Resampling.BILINEAR, fillcolor=(128,) * 3),
  ),
  "rotate back": (
    lambda i: image_ops.rotate(i, math.radians(-12)),
    lambda i: i.rotate(-12, Image.Resampling.BILINEAR, fillcolor=(128,) * 3),
  ),
  "translate": (
    lambda i: image_ops.translate(i, 3 / i.shape[1], -5 / i.shape[0]),
    lambda i: i.transform(
      i.size, Image.Transform.AFFINE, (1, 0, 3, 0, 1, -5), fillcolor=(128,) * 3
    ),
  ),
}
GEOMETRIC = ("rotate", "rotate back", "translate")


@pytest.mark.parametrize("name", PILLOW)
def test_operation_equals_pillow(name, drawn, photos):
  ours, theirs = PILLOW[name]
  for image in [*drawn, *photos]:
    found = ours(_unit(image)).numpy()
    expected = np.asarray(theirs(Image.fromarray(image)), np.float32) / 255
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() <= 1
    if name in GEOMETRIC:  # Pillow does not mix the border with the fill
      assert (abs(found - expected) < 2 / 255).mean() > 0.9
    else:
      # Pillow rounds grey levels and truncates results.
      assert abs(found - expected).max() < 2.1 / 255


def test_shear_moves_rows_and_columns(drawn):
  image = _unit(drawn[0])
  sheared = image_ops.shear(image, 2.0, 0.0).numpy()
  # 24 rows: row 12 is half a row below the centre, so it moves one pixel.
  np.testing.assert_allclose(sheared[12, :-1], image[12, 1:], atol=1e-5)
  np.testing.assert_allclose(sheared[11, 1:], image[11, :-1], atol=1e-5)
  sheared = image_ops.shear(image, 0.0, 2.0).numpy()
  np.testing.assert_allclose(sheared[:-1, 15], image[1:, 15], atol=1e-5)


@pytest.mark.parametrize("name", augment.RANDAUGMENT)
def test_randaugment_grows_with_its_magnitude(name, photos):
  operation = augment.RANDAUGMENT[name]
  sizes = []
  for amount in (0.0, 0.3, 1.0):
    changes = []
    for sign in (1, -1):
      for photo in photos:
        image = _unit(photo)
        found = operation(image, tf.constant(sign * amount))
        assert found.shape == image.shape and found.dtype == tf.float32
        changes.append(abs(found - image).numpy().mean())
    sizes.append(np.mean(changes))
  if name in ("identity", "autocontrast", "equalize"):  # have no strength
    assert sizes[0] == sizes[1] == sizes[2]
    assert (sizes[0] == 0) == (name == "identity")
  else:
    assert sizes[0] < 1e-6 and 0.001 < sizes[1] < sizes[2]


def test_randaugment_draws_every_operation_and_both_signs(monkeypatch):
  names = list(augment.RANDAUGMENT)
  stand_ins = {
    name: lambda image, amount, number=number: image * 0 + number + amount / 4
    for number, name in enumerate(names)
  }
  monkeypatch.setattr(augment, "RANDAUGMENT", stand_ins)
  found = _apply(
    augment.randaugment, tf.zeros([1, 1, 3]), 700, num_layers=1, magnitude=5
  )
  values, counts = np.unique([i[0, 0, 0] for i in found], return_counts=True)
  expected = [n + sign / 8 for n in range(len(names)) for sign in (-1, 1)]
  np.testing.assert_allclose(values, expected, atol=1e-6)
  assert counts.min() > 8 and counts.max() < 50


def test_randaugment_layers_draw_for_themselves(monkeypatch):
  stand_ins = {
    str(n): lambda image, amount, n=n: image * 4 + n for n in range(4)
  }
  monkeypatch.setattr(augment, "RANDAUGMENT", stand_ins)
  found = _apply(
    augment.randaugment, tf.zeros([1, 1, 3]), 200, num_layers=2, magnitude=5
  )
  assert {int(i[0, 0, 0]) for i in found} == set(range(16))


def test_color_jitter_covers_its_ranges():
  grey = tf.fill([2, 2, 3], 0.25)
  only = (0.5, 0.0, 0.0, 0.0)
  found = _apply(augment.color_jitter, grey, 200, strengths=only)
  factors = np.array([i[0, 0, 0] for i in found]) / 0.25
  assert 0.5 <= factors.min() < 0.53 and 1.47 < factors.max() <= 1.5
  assert 0.95 < factors.mean() < 1.05
  red = tf.constant([[[0.8, 0.2, 0.2]]])
  only = (0.0, 0.0, 0.0, 0.1)
  found = np.array(_apply(augment.color_jitter, red, 200, strengths=only))
  # A tenth of the circle takes red 0.6 of the way to yellow or magenta.
  assert abs(found[..., 0] - 0.8).max() < 1e-5
  np.testing.assert_allclose(
    found[..., 1:].max(axis=(0, 1, 2)), [0.56, 0.56], atol=0.02
  )


def test_color_jitter_is_in_random_order_without_what_is_off(monkeypatch):
  stand_ins = (
    (lambda image, how: image + 1, 1.0),
    (lambda image, how: image * 2, 1.0),
    (lambda image, how: image + 100, 1.0),
    (lambda image, how: image + 100, 0.0),
  )
  monkeypatch.setattr(augment, "_JITTER", stand_ins)
  found = _apply(
    augment.color_jitter,
    tf.zeros([1, 1, 3]),
    60,
    strengths=(0.1, 0.1, 0.0, 0.0),
  )
  values, counts = np.unique(found, return_counts=True)
  assert values.tolist() == [1.0, 2.0] and counts.min() > 3 * 15


def test_grayscale_is_the_luma_of_pillow_with_its_probability(photos):
  image = _unit(photos[0])
  luma = np.asarray(Image.fromarray(photos[0]).convert("L"), np.float32) / 255
  found = _apply(augment.grayscale, image, 300, probability=0.3)
  grey = [i for i in found if not np.array_equal(i, image)]
  assert 65 < len(grey) < 115
  for changed in grey:
    np.testing.assert_array_equal(changed[..., :1], changed[..., 1:2])
    np.testing.assert_array_equal(changed[..., :1], changed[..., 2:])
    # Pillow rounds grey levels.
    assert abs(changed[..., 0] - luma).max() < 0.6 / 255


def test_erase_has_its_probability_area_and_aspect():
  image = tf.zeros([100, 60, 3])
  options = {"probability": 0.4, "area": (0.02, 0.3), "fill": (1.0, 0.5, 0.2)}
  found = _apply(augment.erase, image, 600, **options)
  boxes = [i for i in found if i.any()]
  assert 190 < len(boxes) < 290
  areas, aspects, tops, lefts = [], [], [], []
  for box in boxes:
    inside = box[..., 0] == 1
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert inside.sum() == height * width  # a full rectangle, wholly inside
    np.testing.assert_allclose(box[inside].mean(0), (1.0, 0.5, 0.2), rtol=1e-4)
    areas.append(inside.mean())
    aspects.append(height / width)
    tops.append(rows[0])
    lefts.append(columns[0])
  assert 0.015 < min(areas) < 0.04 and 0.25 < max(areas) < 0.31
  assert 0.25 < min(aspects) < 0.45 and 2.5 < max(aspects) < 3.7
  assert min(tops) < 3 and max(tops) > 70 and min(lefts) < 3 and max(lefts) > 40


def test_erased_noise_is_drawn_for_each_image():
  image = tf.zeros([32, 32, 3])
  options = {"probability": 1.0, "area": (0.3, 0.3), "fill": None}
  first, second = _apply(augment.erase, image, 2, **options)
  noise = first[first > 0]
  assert 0.45 < noise.mean() < 0.55 and noise.max() > 0.99
  assert not np.array_equal(noise[:50], second[second > 0][:50])


def test_box_that_never_fits_leaves_the_image():
  image = tf.zeros([4, 400, 3])
  options = {"probability": 1.0, "area": (1.0, 1.0), "fill": (1.0, 1.0, 1.0)}
  assert not np.any(_apply(augment.erase, image, 5, **options))


OPTIONS = {
  "randaugment": {"randaugment": (2, 9.0)},
  "color_jitter": {"color_jitter": (0.4, 0.4, 0.4, 0.1)},
  "grayscale": {"grayscale": 1.0},
  "erase": {"erase": 1.0},
  "erase_mean": {"erase": 1.0, "erase_fill": "mean"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_option_changes_training_alone_and_depends_on_the_seed(name, photos):
  plain = Preprocess(size=32, train="crop_flip", eval="native")
  chain = Preprocess(size=32, train="crop_flip", eval="native", **OPTIONS[name])
  example = {"image": tf.constant(photos[0])}
  evaluated, wanted = chain.eval_fn(example), plain.eval_fn(example)
  np.testing.assert_array_equal(evaluated["image"], wanted["image"])
  run = tf.function(lambda seed: chain.train_fn(example, seed)["image"])
  found = [run(_seed(n)).numpy() for n in range(12)]
  for number, augmented in enumerate(found):
    np.testing.assert_array_equal(augmented, run(_seed(number)))
    assert augmented.min() >= 0 and augmented.max() <= 1
  without = [plain.train_fn(example, _seed(n))["image"] for n in range(12)]
  differ = [
    not np.allclose(a, b, atol=1e-3)
    for a, b in zip(found, without, strict=True)
  ]
  assert sum(differ) >= 10


def test_augmentations_come_in_order(monkeypatch):
  order = []
  for name in ("randaugment", "color_jitter", "grayscale", "erase"):

    def record(image, seed, name=name, **options):
      order.append(name)
      return image

    monkeypatch.setattr(augment, name, record)
  options = {k: v for option in OPTIONS.values() for k, v in option.items()}
  chain = Preprocess(size=32, train="none", eval="native", **options)
  chain.train_fn({"image": tf.zeros([32, 32, 3], tf.uint8)}, _seed(0))
  assert order == ["randaugment", "color_jitter", "grayscale", "erase"]


def test_mean_fill_is_nought_after_normalization(photos):
  mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)
  chain = Preprocess(
    size=32,
    train="none",
    eval="native",
    mean=mean,
    std=std,
    erase=1.0,
    erase_fill="mean",
  )
  example = {"image": tf.constant(photos[0])}
  found = chain.train_fn(example, _seed(0))["image"].numpy()
  assert (abs(found) < 1e-6).all(-1).mean() > 0.015
