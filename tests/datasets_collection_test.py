"""Several sources as one collection, and smaller ones for quick runs."""

import json

import numpy as np
import pytest

from libml import datasets
from libml import registry
from libml.datasets import DATASETS
from libml.datasets import Collection
from libml.datasets import Source
from libml.datasets import Split
from libml.datasets import collection

COLOURS = {"name": "synthetic", "num_classes": 3, "per_class": 4, "size": 6}
NOISE = {**COLOURS, "seed": 1, "size": 5}


def _build(**options):
  return registry.build(DATASETS, "dataset", "collection", **options)


def _split(labels):
  """Images that carry their row number."""
  rows = np.arange(len(labels), dtype=np.uint8)
  images = np.tile(rows[:, None, None, None], (1, 2, 2, 1))
  return Split(images, np.array(labels, np.int32))


def _rows(split):
  return split.images[:, 0, 0, 0].tolist()


def test_parts_come_in_the_order_asked_for():
  found = _build(order=("b", "a"), a=COLOURS, b=NOISE)
  sizes = [part.splits["train"].images.shape[1] for part in found.parts]
  assert sizes == [5, 6] and [part.name for part in found.parts] == ["b", "a"]
  alone = DATASETS["synthetic"](num_classes=3, per_class=4, size=6)
  assert found.parts[1].description == {**alone.description, "name": "a"}
  assert found.description == {
    "name": "collection",
    "parts": [part.description for part in found.parts],
  }
  assert json.loads(json.dumps(found.description)) == found.description


def test_a_collection_may_hold_another():
  both = {"name": "collection", "order": ("x", "y"), "x": COLOURS, "y": NOISE}
  found = _build(order=("a", "b"), a=NOISE, b=both)
  assert [p.splits["test"].images.shape[1] for p in found.parts] == [5, 6, 5]
  assert [part.name for part in found.parts] == ["a", "x", "y"]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"order": ("a", "c"), "a": COLOURS}, "Part 'c' .*no data set.*Known: a"),
    ({"order": ("aa",), "a": COLOURS}, "Part 'aa' .*Did you mean 'a'"),
    ({"order": ("a",), "a": {"size": 6}}, "Part 'a' of the order has no data"),
    ({"order": ("a",), "a": COLOURS, "b": NOISE}, "Part 'b' is not in the or"),
    ({"order": ("a", "a"), "a": COLOURS}, "names a part twice"),
    ({"order": ()}, "'collection' has no parts"),
    ({"order": ("a",), "a": COLOURS, "per_class": 0}, "0 must be at least 1"),
    ({"order": ("a",), "a": {"name": "sintetic"}}, "Did you mean 'synthetic'"),
    ({"order": ("a",), "a": {**COLOURS, "sise": 3}}, "Did you mean 'size'"),
  ],
)
def test_bad_collections_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    _build(**options)


def test_limit_spreads_over_each_class():
  shared = _split([0] * 3 + [1] * 2)
  parts = [
    Source("x", ("cat", "dog"), {"train": _split(labels), "test": shared}, "x")
    for labels in ([0, 1] * 5, [1, 0, 0, 0, 0, 0, 0])
  ]
  found = collection.limit(Collection("x", tuple(parts)), 2)
  trains = [part.splits["train"] for part in found.parts]
  assert [_rows(split) for split in trains] == [[0, 1, 4, 5], [0, 1, 4]]
  for part, split in zip(parts, trains, strict=True):
    whole = part.splits["train"].labels
    np.testing.assert_array_equal(split.labels, whole[_rows(split)])
  tests = [part.splits["test"] for part in found.parts]
  assert tests[0] is tests[1] and _rows(tests[0]) == [0, 1, 3, 4]
  assert found.parts[0].origin == "x; 2 images a class"


def test_limit_of_everything_is_everything():
  whole = _build(order=("a", "b"), a=COLOURS, b=NOISE)
  found = _build(order=("a", "b"), a=COLOURS, b=NOISE, per_class=10)
  for small, part in zip(found.parts, whole.parts, strict=True):
    assert small.description["splits"] == part.description["splits"]


def test_hold_out_divides_each_part():
  whole = _build(order=("a", "b"), a=COLOURS, b=NOISE)
  found = datasets.hold_out(whole, 0.25, seed=3)
  assert isinstance(found, Collection) and found.name == "collection"
  for held, part in zip(found.parts, whole.parts, strict=True):
    alone = datasets.hold_out(part, 0.25, seed=3)
    assert held.description == alone.description
    assert np.bincount(held.splits["test"].labels).tolist() == [1, 1, 1]
