"""Mixup, cutmix, smoothed labels: what is drawn, what a masked loss sees."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from toy import tiny

import main
from libml.datasets import Split
from libml.datasets import Subset
from libml.images import mixing
from libml.images.mixing import Mixing
from libml.images.preprocess import Preprocess
from libml.pipeline import streams
from libml.problems import losses
from libml.train.observer import Observer
from libml.train.walk import Interrupted

CHAIN = Preprocess(size=8, train="none", eval="native")
RANDOM = Preprocess(size=8, train="random_resized_crop", eval="native")


def _subset(count=12, classes=(2, 4, 5)):
  """Images whose every pixel is 20 times their class."""
  labels = np.resize(np.array(classes, np.int32), count)
  images = np.tile(20 * labels[:, None, None, None], (1, 8, 8, 3))
  return Subset.of(Split(images.astype(np.uint8), labels))


def _batches(count, subset, settings, chain=CHAIN, **options):
  options = {"batch_size": 8, "seed": (0, 1), **options}
  found = streams.train_stream(subset, chain, mixing=settings, **options)
  return list(itertools.islice(found, count))


def _seeds(count):
  return [tf.constant([n, 3], tf.int64) for n in range(count)]


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 5.0])
def test_weights_have_the_beta_distribution(alpha):
  draw = tf.function(lambda seed: mixing.draw_beta(seed, alpha))
  drawn = np.array([draw(seed).numpy() for seed in _seeds(1500)])
  assert np.isfinite(drawn).all() and drawn.min() >= 0 and drawn.max() <= 1
  assert abs(drawn.mean() - 0.5) < 0.05
  variance = 1 / (4 * (2 * alpha + 1))
  assert 0.9 * variance < drawn.var() < 1.1 * variance


def test_paste_reports_what_stayed():
  image, other = tf.zeros([40, 20, 3]), tf.ones([40, 20, 3])
  run = tf.function(mixing.paste)
  rest, uncut = [], 0
  for number, seed in enumerate(_seeds(200)):
    weight = number / 200
    found, stayed = run(image, other, tf.constant(weight, tf.float32), seed)
    assert abs(float(stayed) - (found.numpy() == 0).mean()) < 1e-6
    assert stayed > weight - 0.06  # the border only cuts the box
    uncut += bool(stayed < weight + 0.06)
    rows = np.flatnonzero(found.numpy()[..., 0].any(1))
    rest += [rows.min() if rows.size else 0]
  assert uncut > 40 and min(rest) == 0 and max(rest) > 25


def test_off_changes_nothing():
  plain = _batches(3, _subset(), None)
  for batch, again in zip(
    plain, _batches(3, _subset(), Mixing(num_classes=6)), strict=True
  ):
    assert batch["label"].dtype == again["label"].dtype == np.int32
    for key in batch:
      np.testing.assert_array_equal(batch[key], again[key])


def test_label_smoothing_stays_among_the_stages_classes():
  settings = Mixing(num_classes=6, label_smoothing=0.3)
  (batch,), (plain,) = (_batches(1, _subset(), s) for s in (settings, None))
  np.testing.assert_array_equal(batch["image"], plain["image"])
  expected = np.zeros((8, 6), np.float32)
  expected[:, [2, 4, 5]] = 0.1
  expected[np.arange(8), plain["label"]] += 0.7
  np.testing.assert_allclose(batch["label"], expected, atol=1e-6)


def test_mixup_mixes_images_as_labels():
  settings = Mixing(num_classes=6, mixup=1.0)
  batches = _batches(30, _subset(), settings)
  label = np.concatenate([b["label"] for b in batches])
  image = np.concatenate([b["image"] for b in batches])
  assert label.dtype == np.float32 and label.shape == (240, 6)
  np.testing.assert_allclose(label.sum(1), 1, rtol=1e-5)
  assert not label[:, [0, 1, 3]].any()
  shown = label @ (20 * np.arange(6) / 255)
  expected = np.broadcast_to(shown[:, None, None, None], image.shape)
  np.testing.assert_allclose(image, expected, atol=1e-5)
  weight = label.max(1)
  assert (weight < 0.999).mean() > 0.5 and weight.min() < 0.55


def test_cutmix_mixes_areas_as_labels():
  settings = Mixing(num_classes=6, cutmix=1.0)
  for batch in _batches(20, _subset(), settings):
    level = np.rint(255 * batch["image"][..., 0] / 20).astype(int)
    part = np.stack([(level == c).mean((1, 2)) for c in range(6)], axis=1)
    np.testing.assert_allclose(batch["label"], part, atol=1e-5)


def test_both_take_turns():
  settings = Mixing(num_classes=6, mixup=1.0, cutmix=1.0)
  batches = _batches(30, _subset(), settings)
  image = np.concatenate([b["image"] for b in batches])
  label = np.concatenate([b["label"] for b in batches])
  image = image[label.max(1) < 0.99]
  flat = np.ptp(image, axis=(1, 2, 3)) < 1e-6
  assert 0.4 < flat.mean() < 0.6


def test_partner_is_another_example():
  subset = _subset(2, classes=(0, 1))
  settings = Mixing(num_classes=2, mixup=50.0)  # weights near a half
  for batch in _batches(20, subset, settings):
    assert batch["label"].max() < 0.8


def test_subset_of_one_image_is_mixed_with_itself():
  settings = Mixing(num_classes=6, mixup=1.0, cutmix=1.0)
  (batch,) = _batches(1, _subset(1), settings)
  np.testing.assert_allclose(batch["label"], np.eye(6)[[2] * 8], atol=1e-6)


@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_start_threads_and_processes_change_nothing(settings):
  settings = Mixing(num_classes=6, label_smoothing=0.1, **settings)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (20, 8, 8, 3), np.uint8)
  subset = Subset.of(Split(images, np.arange(20, dtype=np.int32) % 6))
  whole = _batches(6, subset, settings, RANDOM)
  late = _batches(4, subset, settings, RANDOM, start_step=2, threads=3)
  parts = [
    _batches(6, subset, settings, RANDOM, process_index=index, process_count=2)
    for index in range(2)
  ]
  joined = [
    {key: np.concatenate([a[key], b[key]]) for key in a}
    for a, b in zip(*parts, strict=True)
  ]
  for expected, found in [
    *zip(whole[2:], late, strict=True),
    *zip(whole, joined, strict=True),
  ]:
    for key in expected:
      np.testing.assert_array_equal(expected[key], found[key])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"mixup": -0.1}, "mixing.mixup=-0.1 must be 0"),
    ({"cutmix": -1.0}, "mixing.cutmix=-1.0"),
    ({"label_smoothing": 1.0}, "label_smoothing=1.0 must be at least 0"),
  ],
)
def test_bad_settings_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    Mixing(num_classes=6, **options)


def test_labels_beyond_the_probabilities_are_named():
  with pytest.raises(ValueError, match="Label 5 has no place .* 5 classes"):
    _batches(1, _subset(), Mixing(num_classes=5, mixup=1.0))


def test_masked_loss_of_probabilities_is_that_of_the_allowed_classes():
  rng = np.random.default_rng(0)
  logits = 30 * rng.normal(size=(5, 6)).astype(np.float32)
  label = np.zeros((5, 6), np.float32)
  label[:, [2, 4, 5]] = rng.dirichlet([0.3] * 3, 5)
  allowed = np.isin(np.arange(6), [2, 4, 5])

  def masked(logits):
    return losses.cross_entropy(losses.mask_logits(logits, allowed), label)

  def reduced(logits):
    return losses.cross_entropy(logits[:, [2, 4, 5]], label[:, [2, 4, 5]])

  for dtype in (jnp.float32, jnp.bfloat16):
    value = jnp.asarray(logits, dtype)
    np.testing.assert_allclose(masked(value), reduced(value), rtol=1e-6)
    found, expected = (
      jax.grad(lambda x, f=f: f(x).sum())(value) for f in (masked, reduced)
    )
    np.testing.assert_allclose(
      found[:, [2, 4, 5]].astype(np.float32), expected[:, [2, 4, 5]], rtol=1e-6
    )
    assert not found[:, [0, 1, 3]].any()


def test_masked_run_with_mixing_has_sane_losses(tmp_path):
  config = tiny()
  config.mixing.update(mixup=0.2, cutmix=1.0, label_smoothing=0.1)
  config.log_every = 1
  assert config.method.mask_classes
  points = []

  class Watcher(Observer):
    def on_means(self, stage, means):
      points.append(means)

  calls = iter(range(30))
  with pytest.raises(Interrupted):
    main.execute(
      config, tmp_path, lambda: next(calls) == 14, observer=Watcher()
    )
  # Two stages have begun; two classes and their smoothing: above 0.2 nats.
  assert len(points) > 10
  for point in points:
    assert 0.2 < point["cross_entropy"] < 5 and np.isfinite(point["loss"])
