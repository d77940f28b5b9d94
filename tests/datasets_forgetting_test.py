"""Images of further classes, and copies of a published data set."""

import logging

import numpy as np
import pytest
from PIL import Image

from libml import datasets
from libml.datasets import DATASETS


def split(labels):
  images = np.zeros((len(labels), 2, 2, 3), np.uint8)
  return datasets.Split(images, np.array(labels, np.int32))


def source(**fields):
  splits = {"train": split([0, 0, 1, 1]), "test": split([0, 1])}
  return datasets.Source("x", ("ant", "bee"), splits, "here", **fields)


# Sources with further classes.


def test_further_classes_are_numbered_after_the_others():
  found = source(others=split([3, 2, 3]), other_names=("cow", "dog"))
  assert found.num_classes == 2
  plain = source().description
  assert "others" not in plain
  described = found.description
  others = described.pop("others")
  assert described == plain
  assert (others["classes"], others["examples"]) == (2, 3)
  renamed = source(others=split([3, 2, 3]), other_names=("cow", "eel"))
  moved = source(others=split([2, 2, 3]), other_names=("cow", "dog"))
  for other in (renamed, moved):
    assert other.description["others"] != others


@pytest.mark.parametrize(
  ("labels", "names", "message"),
  [
    ([2, 4], ("cow", "dog"), "'others', row 1: label 4 is outside 2 to 3"),
    ([1, 2], ("cow",), "'others', row 0: label 1 is outside 2 to 2"),
    ([2], ("cow", "dog"), "no test image of 'dog'"),
    ([2, 3], ("cow", "bee"), "'bee' among its classes and among the other"),
    ([], (), "0 other_names and some images of others; give both"),
    (None, ("cow",), "1 other_names and no images of others; give both"),
  ],
)
def test_bad_further_classes_are_named(labels, names, message):
  others = None if labels is None else split(labels)
  with pytest.raises(ValueError, match=message):
    source(others=others, other_names=names)


def test_tuning_sees_no_test_image_of_further_classes():
  found = source(others=split([2]), other_names=("cow",))
  tuning = datasets.hold_out(found, 0.5, seed=0)
  assert tuning.others is None and tuning.other_names == ()


def test_collection_takes_no_further_classes():
  found = source(others=split([2]), other_names=("cow",))
  with pytest.raises(ValueError, match="Part 'x' .* leave out its option oth"):
    datasets.Collection("both", (source(), found))


# Folders.


def save(root, tree):
  """Writes one small grey image for each count of {"folder/CLASS": count}."""
  for place, count in tree.items():
    folder = root / place
    folder.mkdir(parents=True)
    for n in range(count):
      image = Image.new("RGB", (4, 4), (40 * n,) * 3)
      image.save(folder / f"{n}.{('png', 'jpg')[n % 2]}")
  return root


@pytest.fixture
def faces(tmp_path):
  """Three people, and two that a model knows besides."""
  tree = {"train/10": 3, "train/9": 2, "train/2": 2}
  tree |= {"test/10": 1, "test/9": 2, "test/2": 1}
  save(tmp_path / "others", {"30": 2, "4": 1})
  return save(tmp_path / "faces", tree)


def test_others_of_a_folder(faces):
  found = DATASETS["folder"](root=faces, others=str(faces.parent / "others"))
  assert found.class_names == ("10", "2", "9")
  assert found.other_names == ("30", "4")
  assert found.others.labels.tolist() == [3, 3, 4]
  assert found.others.labels.dtype == np.int32
  assert found.others.images[2].endswith("others/4/0.png")
  assert DATASETS["folder"](root=faces).others is None


def test_others_must_be_others(faces):
  with pytest.raises(ValueError, match="'10', '2', '9' among its classes"):
    DATASETS["folder"](root=faces, others=faces / "test")
  with pytest.raises(FileNotFoundError, match="elsewhere.*others/CLASS"):
    DATASETS["folder"](root=faces, others=faces / "elsewhere")
  with pytest.raises(ValueError, match="10 has no class folders; add"):
    DATASETS["folder"](root=faces, others=faces / "test" / "10")
  broken = faces.parent / "others" / "4" / "broken.png"
  broken.write_bytes(b"hello")
  with pytest.raises(ValueError, match=f"Cannot decode {broken}"):
    DATASETS["folder"](root=faces, others=faces.parent / "others")


# Copies of a published set.

EXPECTED = {
  "classes": ("10", "2", "9"),
  "train_total": 7,
  "test_total": 4,
  "test_counts": (((0, 2), 3), ((1,), 1)),
}


def check(faces, caplog, **changes):
  """Returns the warnings that a folder causes."""
  caplog.clear()
  with caplog.at_level(logging.WARNING, logger="palimpsest"):
    DATASETS["folder"](root=faces, expected={**EXPECTED, **changes})
  return [
    record.getMessage()
    for record in caplog.records
    if record.name == "palimpsest"  # TensorFlow may warn, too
  ]


def test_right_copy_is_silent(faces, caplog):
  assert check(faces, caplog) == []
  nothing = {"train_total": None, "test_total": None, "test_counts": ()}
  assert check(faces, caplog, classes=(), **nothing) == []


def test_other_counts_are_one_warning(faces, caplog):
  (warning,) = check(
    faces,
    caplog,
    train_total=8,
    test_total=5,
    test_counts=(((0, 2), 3), ((1,), 2), ((0, 1), 9)),
  )
  for part in (
    "folder faces has the expected classes",
    "7 train images instead of 8",
    "4 test images instead of 5",
    "1 test images of classes 1 instead of 2",
    "2 test images of classes 0, 1 instead of 9",
    "Compare its results with runs on the same copy",
  ):
    assert part in warning
  assert "0, 2" not in warning


def test_other_classes_are_an_error(faces, caplog):
  with pytest.raises(
    ValueError, match=r"missing 11, 8; not expected 10, 2\. .*classes=\(\)"
  ):
    check(faces, caplog, classes=("11", "8", "9"))
  with pytest.raises(ValueError, match="other ids than expected: 10, 2"):
    check(faces, caplog, classes=("2", "10", "9"))
  with pytest.raises(ValueError, match="Unknown option 'clases'.*'classes'"):
    check(faces, caplog, clases=())


def test_copy_divided_by_lists_is_checked(tmp_path, caplog):
  root = save(tmp_path / "faces", {"10": 2, "9": 2})
  lists = {}
  for n, key in enumerate(("train", "test")):
    suffix = ("png", "jpg")[n]
    lists[f"{key}_list"] = path = tmp_path / f"{key}.txt"
    path.write_text(f"10/{n}.{suffix}\n9/{n}.{suffix}\n")
  lists = {key: str(path) for key, path in lists.items()}
  with caplog.at_level(logging.WARNING, logger="palimpsest"):
    DATASETS["folder"](root=root, **lists, expected={"train_total": 3})
  assert "2 train images instead of 3" in caplog.text
