"""Batches: the same whatever the start, the threads or the processes."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from libml.datasets import Split
from libml.datasets import Subset
from libml.images.preprocess import Preprocess
from libml.pipeline import streams

_ZEROS = np.zeros(4, np.int32)
_EIGHT = np.zeros(8, np.int32)
PLAIN = Preprocess(size=8, train="none", eval="native")
RANDOM = Preprocess(size=8, train="random_resized_crop", eval="native")


def _split(count, first=0, channels=3):
  """Images that carry their number in every pixel; labels 0, 1, 2, 0, ..."""
  numbers = np.arange(first, first + count, dtype=np.uint8)
  images = np.tile(numbers[:, None, None, None], (1, 8, 8, channels))
  return Split(images, (np.arange(count) % 3).astype(np.int32))


def _noise(count):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
  return Subset.of(Split(images, np.zeros(count, np.int32)))


def _numbers(batch):
  return np.rint(batch["image"][:, 0, 0, 0] * 255).astype(int)


def _take(count, subset, chain=PLAIN, **options):
  options = {"batch_size": 8, "seed": (0, 1), **options}
  return list(
    itertools.islice(streams.train_stream(subset, chain, **options), count)
  )


def _equal(some, others):
  assert len(some) == len(others)
  for a, b in zip(some, others, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      assert a[key].dtype == b[key].dtype
      np.testing.assert_array_equal(a[key], b[key])


def test_batch_types():
  batch = _take(1, Subset.of(_split(20)))[0]
  assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
    "image": ("float32", (8, 8, 8, 3)),
    "label": ("int32", (8,)),
  }


def test_each_epoch_is_a_new_permutation():
  batches = _take(15, Subset.of(_split(20)))
  epochs = np.concatenate([_numbers(b) for b in batches]).reshape(6, 20)
  assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 6
  assert len({tuple(epoch) for epoch in epochs}) == 6
  assert list(range(20)) not in epochs.tolist()


def test_labels_belong_to_their_images():
  subset = Subset.of(_split(20), [1, 2], {1: 5, 2: 7})
  for batch in _take(4, subset):
    expected = np.array([-1, 5, 7])[_numbers(batch) % 3]
    np.testing.assert_array_equal(batch["label"], expected)


@pytest.mark.parametrize("start", [1, 2, 5, 7])
def test_start_step_continues_a_run(start):
  subset = _noise(20)
  whole = _take(9, subset, RANDOM)
  rest = _take(9 - start, subset, RANDOM, start_step=start, threads=3)
  _equal(whole[start:], rest)


def test_late_start_is_quick():
  assert _take(1, _noise(20), RANDOM, start_step=10**9)


def test_thread_count_changes_nothing():
  runs = [_take(6, _noise(20), RANDOM, threads=n) for n in (1, 2, 4)]
  _equal(runs[0], runs[1])
  _equal(runs[0], runs[2])


@pytest.mark.parametrize("seed", [(0,), (0, 2), (1, 1), (0, 1, 0), (1, 0)])
def test_every_part_of_the_seed_counts(seed):
  subset = _noise(20)
  first, other = _take(1, subset)[0], _take(1, subset, seed=seed)[0]
  assert not np.array_equal(first["image"], other["image"])


def test_augmentation_changes_with_epoch_and_row():
  split = Split(np.tile(_noise(1).pieces[0].split.images, (4, 1, 1, 1)), _ZEROS)
  batches = _take(8, Subset.of(split), RANDOM, batch_size=4)
  images = {image.tobytes() for batch in batches for image in batch["image"]}
  # Few different crops exist in 8x8 pixels; without epoch or row: 4 or 8.
  assert len(images) > 20


@pytest.mark.parametrize("count", [2, 4])
def test_processes_divide_each_batch(count):
  subset = _noise(21)
  whole = _take(6, subset, RANDOM, start_step=1)
  parts = [
    _take(
      6,
      subset,
      RANDOM,
      start_step=1,
      process_index=index,
      process_count=count,
    )
    for index in range(count)
  ]
  joined = [
    {key: np.concatenate([p[key] for p in part]) for key in part[0]}
    for part in zip(*parts, strict=True)
  ]
  _equal(whole, joined)


def test_subset_smaller_than_a_batch():
  batches = _take(3, Subset.of(_split(3)))
  numbers = np.concatenate([_numbers(b) for b in batches])
  assert [sorted(epoch) for epoch in numbers.reshape(8, 3)] == [[0, 1, 2]] * 8


def test_pieces_of_several_splits(tmp_path):
  grey = _split(7, first=100, channels=1)
  png = [tf.io.encode_png(i).numpy() for i in _split(2, first=200).images]
  inside = Split(np.array(png, object), _ZEROS[:2], "bytes")
  for number, content in enumerate(png):
    (tmp_path / f"{number}.png").write_bytes(content)
  paths = [str(tmp_path / f"{number}.png") for number in range(2)]
  outside = Split(np.array(paths, object), _ZEROS[:2], "path")
  first = _split(5)
  subset = (
    Subset.of(first, [0])
    + Subset.of(grey, label_map={0: 10, 1: 11, 2: 12})
    + Subset.of(inside, label_map={0: 20})
    + Subset.of(outside, label_map={0: 30})
    + Subset.of(first, [1])
  )
  numbers = [0, 3, *range(100, 107), 200, 201, 200, 201, 1, 4]
  labels = [0, 0, 10, 11, 12, 10, 11, 12, 10, 20, 20, 30, 30, 1, 1]
  (batch,) = streams.sweep(subset, PLAIN, batch_size=15)
  np.testing.assert_array_equal(_numbers(batch), numbers)
  np.testing.assert_array_equal(batch["label"], labels)
  (batch,) = _take(1, subset, batch_size=15)
  found = zip(_numbers(batch).tolist(), batch["label"].tolist(), strict=True)
  assert sorted(found) == sorted(zip(numbers, labels, strict=True))


@pytest.mark.parametrize("size", [1, 7, 8, 9, 20])
@pytest.mark.parametrize("count", [1, 2])
def test_sweep_loses_no_image(size, count):
  subset = Subset.of(_split(size), label_map={0: 4, 1: 5, 2: 6})
  parts = [
    list(
      streams.sweep(
        subset, PLAIN, batch_size=8, process_index=i, process_count=count
      )
    )
    for i in range(count)
  ]
  assert {len(part) for part in parts} == {-(-size // 8)}
  joined = [
    {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
    for batches in zip(*parts, strict=True)
  ]
  whole = {k: np.concatenate([b[k] for b in joined]) for k in joined[0]}
  assert {k: v.dtype.name for k, v in whole.items()} == {
    "image": "float32",
    "label": "int32",
    "mask": "bool",
    "index": "int32",
  }
  assert len(whole["mask"]) == 8 * -(-size // 8)
  np.testing.assert_array_equal(np.flatnonzero(whole["mask"]), np.arange(size))
  np.testing.assert_array_equal(whole["index"][:size], np.arange(size))
  assert not whole["index"][size:].any()
  np.testing.assert_array_equal(_numbers(whole)[:size], np.arange(size))
  np.testing.assert_array_equal(whole["label"][:size], subset.labels)


def test_sweep_takes_the_evaluation_chain():
  chain = Preprocess(size=8, train="crop_flip", eval="native")
  split = _noise(8).pieces[0].split
  (batch,) = streams.sweep(Subset.of(split), chain, batch_size=8)
  np.testing.assert_array_equal(batch["image"], split.images / np.float32(255))


@pytest.mark.parametrize(("count", "threads"), [(1, 1), (1, 3), (2, 2)])
def test_augmented_sweep_is_the_same_at_each_pass(count, threads):
  subset = _noise(13)

  def run(**options):
    parts = [
      list(
        streams.sweep(subset, RANDOM, batch_size=8, process_index=i, **options)
      )
      for i in range(options.get("process_count", 1))
    ]
    return [
      {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
      for batches in zip(*parts, strict=True)
    ]

  plain, augmented = run(), run(augment=True)
  _equal(augmented, run(augment=True, process_count=count, threads=threads))
  for a, b in zip(plain, augmented, strict=True):
    for key in ("label", "mask", "index"):
      np.testing.assert_array_equal(a[key], b[key])
    assert not np.array_equal(a["image"], b["image"])


def test_augmented_sweep_crops_each_image_for_itself():
  split = Split(np.tile(_noise(1).pieces[0].split.images, (8, 1, 1, 1)), _EIGHT)
  (batch,) = streams.sweep(Subset.of(split), RANDOM, batch_size=8, augment=True)
  assert len({image.tobytes() for image in batch["image"]}) > 4


def test_images_are_not_copied_for_each_stream():
  split = _split(6)
  assert streams._images(split) is streams._images(split)
  before = len(streams._TENSORS)
  del split
  assert len(streams._TENSORS) == before - 1


@pytest.mark.parametrize("make", [_take, None])
def test_bad_batches_are_named(make):
  def run(subset, **options):
    if make:
      make(1, subset, **options)
    else:
      list(streams.sweep(subset, PLAIN, **{"batch_size": 8, **options}))

  subset = Subset.of(_split(5))
  with pytest.raises(ValueError, match="images that a stage reads is empty"):
    run(subset.select([9]))
  with pytest.raises(ValueError, match="Batch size 8 .* processes, 3"):
    run(subset, process_count=3)
  with pytest.raises(ValueError, match="Process index 2 must lie in 0 to 1"):
    run(subset, process_count=2, process_index=2)
  with pytest.raises(ValueError, match="Batch size 0"):
    run(subset, batch_size=0)
