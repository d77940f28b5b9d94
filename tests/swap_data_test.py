"""Data of a swap: three folders, or lists of classes."""

import inspect
import re

import numpy as np
import pytest
from PIL import Image

import main
from configs import digits_pretrain
from configs import digits_swap
from configs import imagenet100_swap
from libml import datasets
from libml.datasets import tfds_rows

DATASETS = datasets.DATASETS
# Set -> its folders of classes, as the reference names them.
REFERENCE = {
  "learn": ("owl", "bat"),
  "forget": ("3_n01531178",),
  "retain": ("10_n01629819", "2_n01443537"),
}
SPLITS = {"train": 3, "test": 2}


def picture(path, level):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(path)


def write(root, sets, parts=("train/", "test/"), count=4):
  """Writes one colour a class; returns the options that name the folders."""
  level = 0
  for key, names in sets.items():
    for name in names:
      level += 20
      for part in parts:
        images = SPLITS.get(part[:-1], count)
        for i in range(images):
          picture(root / key / f"{part}{name}" / f"{i}.jpg", level)
  return {key: str(root / key) for key in sets}


def found_in(split):
  """Returns the number of images of each label."""
  labels, counts = np.unique(split.labels, return_counts=True)
  return dict(zip(labels.tolist(), counts.tolist(), strict=True))


def bytes_of(split):
  """Returns the images themselves, whatever their order."""
  return {image.tobytes() for image in split.images}


def test_layout_of_the_reference(tmp_path):
  roots = write(tmp_path, REFERENCE)
  found = DATASETS["swap_folders"](**roots, known=12)
  assert len(found.known) == 12
  # By number, not by name: "10_" sorts before "2_".
  assert found.known[2] == "2_n01443537" and found.known[3] == "3_n01531178"
  assert found.known[10] == "10_n01629819" and found.known[0] == "class 0"
  assert found.learn.class_names == ("bat", "owl")
  assert set(found.names["retain"]) == set(REFERENCE["retain"])
  assert found.names["forget"] == REFERENCE["forget"]
  assert set(found.unseen) == {f"class {i}" for i in range(12)} - {
    "class 2",
    "class 3",
    "class 10",
  }
  for split, count in SPLITS.items():
    assert found_in(found.old.splits[split]) == dict.fromkeys(range(3), count)
    assert found_in(found.learn.splits[split]) == {0: count, 1: count}
  for path, label in zip(
    found.old.splits["train"].images,
    found.old.splits["train"].labels,
    strict=True,
  ):
    assert f"/{found.old.class_names[label]}/" in path
  # As many as the largest column says, where nothing else does.
  assert len(DATASETS["swap_folders"](**roots).known) == 11


def test_names_from_a_file(tmp_path):
  sets = {"learn": ("owl",), "forget": ("n02",), "retain": ("n03", "n01")}
  roots = write(tmp_path, sets)
  names = tmp_path / "labels.txt"
  names.write_text("n00 tench\nn03 shark\nn02 jay\nn01 hen\n")
  found = DATASETS["swap_folders"](**roots, names=str(names))
  assert found.known == ("n00", "n03", "n02", "n01")
  assert found.unseen == ("n00",)
  assert found.names["forget"] == ("n02",)
  names.write_text("n03\nn02\n")
  with pytest.raises(ValueError, match="'n01' among its old classes"):
    DATASETS["swap_folders"](**roots, names=str(names))


def test_undivided_folders_are_divided_once(tmp_path):
  roots = write(tmp_path, REFERENCE, parts=("",))
  options = {**roots, "test_fraction": 0.25, "known": 12}
  first, again = (DATASETS["swap_folders"](**options) for _ in range(2))
  for part in ("old", "learn"):
    splits = getattr(first, part).splits
    train, test = (set(splits[key].images) for key in ("train", "test"))
    assert not train & test and len(train) == 3 * len(test)
    theirs = getattr(again, part).splits["test"].images
    assert test == set(theirs)
  assert first.description == again.description
  other = DATASETS["swap_folders"](**options, seed=1)
  assert other.description != first.description


def test_description_tells_data_apart(tmp_path):
  roots = write(tmp_path, REFERENCE)
  found = DATASETS["swap_folders"](**roots, known=12)
  told = found.description
  assert told["known"] == 12 and told["name"] == "swap_folders"
  assert told["old"]["splits"]["train"]["examples"] == 9
  assert told["learn"]["splits"]["test"]["examples"] == 4
  wider = DATASETS["swap_folders"](**roots, known=13).description
  assert wider["known_crc32"] != told["known_crc32"]
  picture(tmp_path / "learn" / "train" / "owl" / "more.jpg", 0)
  more = DATASETS["swap_folders"](**roots, known=12).description
  assert more["old"] == told["old"] and more["learn"] != told["learn"]


def test_classes_of_one_data_set():
  found = DATASETS["swap_classes"](
    known={"name": "digits"}, learn=(1, "8"), forget=(0, 9)
  )
  # What is left after those to learn, in its own order.
  assert found.known == ("0", "2", "3", "4", "5", "6", "7", "9")
  assert found.learn.class_names == ("1", "8")
  assert found.names["forget"] == ("0", "9") and found.forget == (0, 7)
  assert found.names["retain"] == ("2", "3", "4", "5", "6", "7")
  assert found.unseen == ()
  whole = DATASETS["digits"]()
  for part, wanted in ((found.old, found.known), (found.learn, ("1", "8"))):
    for split in ("train", "test"):
      for label, name in enumerate(wanted):
        theirs = whole.splits[split].select([int(name)], 10)
        ours = part.splits[split].select([label], part.num_classes)
        np.testing.assert_array_equal(ours.images, theirs.images)


def test_classes_of_an_old_and_a_new_one():
  options = {"known": {"name": "digits"}, "forget": ("3",)}
  new = {"name": "synthetic", "num_classes": 12}
  found = DATASETS["swap_classes"](**options, new=new, learn=(11, 10))
  assert found.known == tuple(map(str, range(10)))
  assert len(found.learn.class_names) == 2
  images = (
    DATASETS["synthetic"](num_classes=12).splits["train"].select([11], 12)
  )
  ours = found.learn.splits["train"].select([0], 2)
  np.testing.assert_array_equal(ours.images, images.images)
  some = DATASETS["swap_classes"](
    **options, new=new, learn=(10,), retain=(0, "2")
  )
  assert some.names["retain"] == ("0", "2")
  assert some.unseen == ("1", "4", "5", "6", "7", "8", "9")


def test_tuning_sees_none_of_the_images_that_the_weights_saw():
  def built(config):
    source, _ = main.build_scenario(config)
    return source

  assert "tune" in digits_swap.get_config("tune").pretrain
  assert "tune" not in digits_swap.get_config().pretrain
  for arg in ("", "tune"):
    weights = built(digits_pretrain.get_config(f"known=8,{arg}"))
    swap = built(digits_swap.get_config(arg))
    assert swap.known == weights.class_names
    for split in ("train", "test"):
      theirs = bytes_of(weights.splits[split])
      assert bytes_of(swap.old.splits[split]) == theirs
      np.testing.assert_array_equal(
        swap.old.splits[split].labels, weights.splits[split].labels
      )
  true = built(digits_swap.get_config())
  for part in ("old", "learn"):
    tests = bytes_of(getattr(true, part).splits["test"])
    for split in getattr(swap, part).splits.values():
      assert not bytes_of(split) & tests


@pytest.mark.parametrize("name", sorted(imagenet100_swap.LEARN))
def test_rows_are_as_tfds_defines_them(name, tmp_path):
  import tensorflow_datasets as tfds

  row, count = imagenet100_swap.LEARN[name]
  options = tfds_rows.TFDS_DEFAULTS[row]
  builder = tfds.builder_cls(options["builder"])(data_dir=str(tmp_path))
  features = builder.info.features
  assert features["label"].num_classes == count
  assert features["image"].shape[-1] == 3
  written = re.findall(
    r"name=(?:tfds\.Split\.)?\"?(\w+)",
    inspect.getsource(type(builder)._split_generators),
  )
  used = {
    options.get(f"{key}_split", key).partition("[")[0]
    for key in ("train", "test")
  }
  assert used <= {split.lower() for split in written}
  # Where there is a test split, it is the one to test on.
  assert ("TEST" in written or "test" in written) == ("test" in used)
  new, learn = imagenet100_swap.learned(name, 5)
  assert new["name"] == row and len(set(learn)) == 5
  assert set(learn) < set(range(count))
  assert imagenet100_swap.learned(name, 10)[1][:5] == learn
  with pytest.raises(FileNotFoundError, match=f"tfds build {row} "):
    DATASETS[row](data_dir=str(tmp_path))
