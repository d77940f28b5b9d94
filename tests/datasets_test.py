"""Sources and subsets: what they hold, and what is said of bad data."""

import subprocess
import sys

import numpy as np
import pytest

from libml import datasets
from libml.datasets import DATASETS
from libml.datasets import Source
from libml.datasets import Split
from libml.datasets import Subset
from libml.datasets import glyphs
from libml.datasets import source


def _split(labels, encoding="array"):
  """Images that carry their row number."""
  rows = np.arange(len(labels), dtype=np.uint8)
  images = np.tile(rows[:, None, None, None], (1, 2, 2, 1))
  return Split(images, np.array(labels, np.int32), encoding)


def _source(train, test=(0,), names=("cat", "dog", "eel")):
  return Source("x", names, {"train": _split(train), "test": _split(test)}, "")


def _rows(subset):
  return [piece.rows.tolist() for piece in subset.pieces]


def _nearest_mean(found):
  """Accuracy of the nearest class mean."""
  train, test = found.splits["train"], found.splits["test"]
  means = np.stack(
    [train.images[train.labels == i].mean(0) for i in range(found.num_classes)]
  )
  error = ((test.images[:, None] - means) ** 2).sum((2, 3, 4))
  return np.mean(error.argmin(1) == test.labels)


def test_import_leaves_tensorflow_alone():
  code = (
    "import sys; import libml.datasets; "
    "sys.exit(any(m.startswith('tensorflow') for m in sys.modules))"
  )
  assert (
    subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
  )


# Embedded sources.


def test_digits_are_the_digits_of_scikit_learn():
  from sklearn.datasets import load_digits

  found = DATASETS["digits"]()
  train, test = found.splits["train"], found.splits["test"]
  assert (len(train), len(test)) == (1347, 450)
  assert train.images.shape[1:] == (8, 8, 3)
  images = np.concatenate([train.images, test.images])
  assert images.min() == 0 and images.max() == 255
  assert (images == images[..., :1]).all()
  whole = load_digits()
  order = np.lexsort(images[..., 0].reshape(-1, 64).T)
  levels = np.rint(images[order][..., 0] * (16 / 255))
  expected = whole.images[np.lexsort(whole.images.reshape(-1, 64).T)]
  np.testing.assert_array_equal(levels, expected)
  assert 43 <= np.bincount(test.labels).min() <= np.bincount(test.labels).max()
  assert np.bincount(test.labels).max() <= 46


@pytest.mark.parametrize(
  ("name", "options", "shape", "accuracy"),
  [
    ("digits", {}, (8, 8, 3), 0.85),
    ("synthetic", {"num_classes": 7, "size": 6}, (6, 6, 3), 0.99),
    ("synthetic", {"noise": 5000.0}, (8, 8, 3), None),
    ("glyphs", {"per_class": 20, "test_per_class": 5}, (8, 8, 3), 0.65),
    ("glyphs", {"per_class": 1, "test_per_class": 1, "size": 12}, None, None),
  ],
)
def test_embedded_sources(name, options, shape, accuracy):
  found, again = DATASETS[name](**options), DATASETS[name](**options)
  other = DATASETS[name](**options, seed=1)
  assert found.name == name
  assert found.description == again.description
  prints = [s.description["splits"] for s in (found, other)]
  assert prints[0]["train"] != prints[1]["train"]
  assert prints[0]["test"] != prints[1]["test"]
  assert prints[0]["train"] != prints[0]["test"]
  size = options.get("size", 8)
  for split in found.splits.values():
    assert split.images.shape[1:] == (size, size, 3) == (shape or (12, 12, 3))
    assert (np.bincount(split.labels) > 0).sum() == found.num_classes
  if accuracy:
    assert _nearest_mean(found) > accuracy


def test_synthetic_and_glyphs_count():
  for name in ("synthetic", "glyphs"):
    found = DATASETS[name](per_class=3, test_per_class=2)
    assert set(np.bincount(found.splits["train"].labels)) == {3}
    assert set(np.bincount(found.splits["test"].labels)) == {2}


def test_glyphs_look_like_digits():
  digits = DATASETS["digits"]().splits["train"].images[..., 0] / 255
  letters = (
    DATASETS["glyphs"](per_class=10).splits["train"].images[..., 0] / 255
  )
  assert abs(digits.mean() - letters.mean()) < 0.06
  assert abs((digits == 0).mean() - (letters == 0).mean()) < 0.06
  # The ink touches the upper and the lower edge.
  assert letters[:, 0].mean() > 0.2 and letters[:, -1].mean() > 0.2
  assert letters.max(axis=(1, 2)).min() > 0.5


def test_glyphs_use_no_symbol_font():
  names = {path.stem for path in glyphs._fonts()}
  assert {"DejaVuSans", "STIXGeneral", "cmr10"} <= names
  assert not names & {"cmsy10", "cmex10", "LastResortHE-Regular", "STIXNonUni"}


def test_glyph_classes_share_no_letter():
  letters = "".join(glyphs.CLASSES)
  assert len(set(letters)) == len(letters) == 50


# Split, Source, hold_out.


@pytest.mark.parametrize(
  ("images", "labels", "encoding", "message"),
  [
    (np.zeros((2, 4, 4, 3)), np.zeros(2, np.int32), "array", "float64"),
    (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int32), "array", "uint8"),
    (np.zeros((2, 4, 4, 4), np.uint8), np.zeros(2, np.int32), "array", "1 or"),
    (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, np.int32), "array", "Label"),
    (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2), "array", "float64"),
    (np.zeros((2, 2), object), np.zeros(2, np.int32), "path", "one entry"),
    (np.zeros(2, object), np.zeros(2, np.int32), "jpeg", "array, bytes, path"),
  ],
)
def test_bad_splits_are_named(images, labels, encoding, message):
  with pytest.raises(ValueError, match=message):
    Split(images, labels, encoding)


def test_bad_sources_are_named():
  with pytest.raises(ValueError, match="empty class.* 'dog'"):
    _source([0, 2, 2])
  with pytest.raises(ValueError, match="'train', row 1: label 3 .* 0 to 2"):
    _source([0, 3, 1, 2])
  with pytest.raises(ValueError, match="'test', row 0: label -1"):
    _source([0, 1, 2], test=[-1])
  with pytest.raises(ValueError, match=r"\['training'\].*'train' and 'test'"):
    Source("x", ("cat",), {"training": _split([0])}, "")


def test_fingerprint_sees_every_change():
  plain = _split([0, 1, 2])
  images = plain.images.copy()
  images[1, 0, 0, 0] += 1
  changed = Split(images, plain.labels)
  assert changed.fingerprint != plain.fingerprint
  assert _split([0, 2, 1]).fingerprint != plain.fingerprint
  assert plain.rows(np.arange(3)).fingerprint == plain.fingerprint
  some, other = (
    Split(np.array(files, object), np.zeros(2, np.int32), "bytes")
    for files in ([b"a", b"b"], [b"a", b"c"])
  )
  assert some.fingerprint != other.fingerprint


def test_hold_out_takes_of_train_alone():
  labels = [0] * 10 + [1] * 20 + [2] * 2
  whole = _source(labels, test=[0] * 50)
  found = datasets.hold_out(whole, 0.2, seed=3)
  train, test = found.splits["train"], found.splits["test"]
  np.testing.assert_array_equal(np.bincount(test.labels), [2, 4, 1])
  rows = [s.images[:, 0, 0, 0].tolist() for s in (train, test)]
  assert sorted(rows[0] + rows[1]) == list(range(32))
  assert rows == [sorted(r) for r in rows]
  for split in (train, test):
    expected = np.array(labels)[split.images[:, 0, 0, 0]]
    np.testing.assert_array_equal(split.labels, expected)
  again = datasets.hold_out(whole, 0.2, seed=3).description
  assert again == found.description != whole.description
  other = datasets.hold_out(whole, 0.2, seed=4).splits["test"]
  assert other.images.tobytes() != test.images.tobytes()


def test_hold_out_of_the_impossible():
  with pytest.raises(ValueError, match="Class 1 has a single image"):
    datasets.hold_out(_source([0, 0, 1, 2, 2]), 0.5, seed=0)
  for fraction in (0, 1, -0.1):
    with pytest.raises(ValueError, match="above 0 and below 1"):
      datasets.hold_out(_source([0, 0, 1, 1, 2, 2]), fraction, seed=0)


def test_random_numbers_are_the_same_everywhere():
  # np.random.Philox is a fixed algorithm: these never change.
  found = source.generator(1, 2).integers(0, 1000, 4)
  assert found.tolist() == [627, 299, 335, 73]


# Subset.


def test_subset_of_all_and_of_classes():
  split = _split([2, 0, 1, 0, 2, 1])
  assert _rows(Subset.of(split)) == [[0, 1, 2, 3, 4, 5]]
  found = Subset.of(split, [2, 0], {0: 7, 2: 5})
  assert _rows(found) == [[0, 1, 3, 4]]
  assert (
    found.labels.tolist() == [5, 7, 7, 5] and found.labels.dtype == np.int32
  )
  assert len(found) == 4
  assert _rows(Subset.of(split, (i for i in [1]))) == [[2, 5]]


def test_subset_needs_a_label_for_each_class():
  with pytest.raises(ValueError, match=r"Classes \[1\] have no label"):
    Subset.of(_split([0, 1]), label_map={0: 3})


def test_subset_addition_and_selection():
  first, second = _split([0, 1, 0]), _split([1, 0])
  both = Subset.of(first) + Subset.of(second, label_map={0: 5, 1: 6})
  assert both.labels.tolist() == [0, 1, 0, 6, 5] and len(both) == 5
  assert _rows(both.select([0, 5])) == [[0, 2], [1]]
  assert both.select([5]).pieces[0].split is second
  empty = both.select([9])
  assert len(empty) == 0 and empty.pieces == () and empty.labels.size == 0
  assert len(empty + both) == 5


def test_take_per_class():
  rng = np.random.default_rng(0)
  split = _split(rng.permutation(np.repeat([0, 1, 2], 20)))
  both = Subset.of(split, [0, 1]) + Subset.of(split, [2])
  found = both.take_per_class(4, seed=0)
  assert np.bincount(found.labels).tolist() == [4, 4, 4]
  rows = _rows(found)
  assert rows == [sorted(r) for r in rows] and len(rows) == 2
  for piece in found.pieces:
    np.testing.assert_array_equal(piece.labels, split.labels[piece.rows])
  assert _rows(both.take_per_class(4, seed=0)) == rows
  assert _rows(both.take_per_class(4, seed=1)) != rows
  # A class's draw does not depend on the company.
  assert _rows(both.select([2]).take_per_class(4, seed=0)) == rows[1:]


def test_take_more_than_there_is():
  subset = Subset.of(_split([0, 0, 1]))
  with pytest.raises(
    ValueError, match="Class 1 has 1 images, fewer than the 2"
  ):
    subset.take_per_class(2, seed=0)
  with pytest.raises(ValueError, match="Cannot take 0"):
    subset.take_per_class(0, seed=0)
