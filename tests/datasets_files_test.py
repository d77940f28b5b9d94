"""The user's files and prepared tfds data: what is read and what refused."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from libml import streams
from libml.datasets import DATASETS
from libml.datasets import Subset
from libml.datasets import tfds_source
from libml.preprocess import Preprocess

ARRAYS = {
  "x_train": np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4),
  "y_train": np.array([[0], [1], [2], [0], [1], [2]]),
  "x_test": np.full((3, 4, 4), 7, np.uint8),
  "y_test": np.array([2, 1, 1], np.uint8),
}


def _npz(folder, **arrays):
  path = folder / "toy.npz"
  np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
  return path


def test_npz(tmp_path):
  names = np.array(["cat", "dog", "eel"])
  found = DATASETS["npz"](path=_npz(tmp_path, **ARRAYS, class_names=names))
  assert found.class_names == ("cat", "dog", "eel")
  train = found.splits["train"]
  np.testing.assert_array_equal(train.images[..., 0], ARRAYS["x_train"])
  assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
  assert found.splits["test"].labels.tolist() == [2, 1, 1]


def test_npz_classes_are_numbered_anew(tmp_path):
  found = DATASETS["npz"](path=_npz(tmp_path, **ARRAYS), classes=[2, 0])
  assert found.class_names == ("2", "0")
  train = found.splits["train"]
  assert train.labels.tolist() == [1, 0, 1, 0]
  np.testing.assert_array_equal(
    train.images[..., 0], ARRAYS["x_train"][[0, 2, 3, 5]]
  )
  assert found.splits["test"].labels.tolist() == [0]


@pytest.mark.parametrize(
  ("change", "options", "message"),
  [
    ({"y_test": None}, {}, "no y_test; it has x_train, y_train, x_test"),
    ({"y_train": np.array([0, 1], object)}, {}, "Cannot read .* np.savez"),
    ({"y_test": np.zeros(3)}, {}, "y_test is float64; .* integers"),
    ({"y_test": np.zeros(2, int)}, {}, "x_test, y_test: .* 3 images"),
    ({"x_train": np.zeros((6, 4, 4))}, {}, "x_train.*must be uint8"),
    ({"y_train": np.array([0, 0, 0, 0, 2, 2])}, {}, "empty class.*'1'"),
    ({"class_names": np.array(["a", "b"])}, {}, "label 2 is outside 0 to 1"),
    ({}, {"classes": [0, 3]}, r"\[0, 3\] must be different ids in 0 to 2"),
    ({}, {"classes": [0, 0]}, "different ids"),
  ],
)
def test_bad_npz_is_named(tmp_path, change, options, message):
  path = _npz(tmp_path, **{**ARRAYS, **change})
  with pytest.raises(ValueError, match=message):
    DATASETS["npz"](path=path, **options)


def test_npz_that_cannot_be_read(tmp_path):
  with pytest.raises(FileNotFoundError, match="nowhere.npz.*x_train"):
    DATASETS["npz"](path=tmp_path / "nowhere.npz")
  path = _npz(tmp_path, **ARRAYS)
  whole = path.read_bytes()
  np.save(tmp_path / "toy.npy", ARRAYS["x_train"])
  array = (tmp_path / "toy.npy").read_bytes()
  for content in (whole[:-200], whole[:200], array, b"", b"hello"):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Cannot read .*toy.npz"):
      DATASETS["npz"](path=path)


@pytest.fixture
def folder(tmp_path):
  """Two classes; image n of a class is grey level 10 n + 100 class."""
  for split, count in (("train", 3), ("test", 2)):
    for label, name in enumerate(("ant", "bee")):
      path = tmp_path / split / name
      path.mkdir(parents=True)
      for n in range(count):
        suffix = (".png", ".JPG", ".bmp")[n]
        level = 10 * n + 100 * label
        Image.new("RGB", (16, 16), (level,) * 3).save(path / f"{n}{suffix}")
  (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
  (tmp_path / "train" / ".cache").mkdir()
  return tmp_path


def test_folder(folder):
  found = DATASETS["folder"](root=str(folder))
  assert found.class_names == ("ant", "bee")
  assert found.splits["train"].labels.tolist() == [0, 0, 0, 1, 1, 1]
  assert found.splits["test"].labels.tolist() == [0, 0, 1, 1]
  chain = Preprocess(size=16, eval="native")
  subset = Subset.of(found.splits["train"])
  (batch,) = streams.sweep(subset, chain, batch_size=6)
  levels = np.rint(255 * batch["image"][:, 3, 3, 0])
  np.testing.assert_allclose(levels, [0, 10, 20, 100, 110, 120], atol=2)


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_folder_is_named(folder, split):
  (folder / split).rename(folder / "elsewhere")
  with pytest.raises(FileNotFoundError, match=f"/{split}.*root/train/CLASS"):
    DATASETS["folder"](root=folder)


def test_empty_class_is_named(folder):
  (folder / "train" / "cow").mkdir()
  with pytest.raises(ValueError, match="empty class.*'cow'"):
    DATASETS["folder"](root=folder)


def test_class_of_test_alone_is_named(folder):
  (folder / "test" / "cow").mkdir()
  with pytest.raises(ValueError, match="/train does not have: cow"):
    DATASETS["folder"](root=folder)


def _break(folder, kind):
  path = folder / "test" / "bee" / f"broken-{kind}.jpg"
  rng = np.random.default_rng(0)
  noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
  noise.save(path)
  content = {"text": b"hello", "empty": b"", "cut": path.read_bytes()[:-500]}
  path.write_bytes(content[kind])
  return path


@pytest.mark.parametrize("kind", ["text", "empty", "cut"])
def test_broken_image_is_named(folder, kind):
  path = _break(folder, kind)
  with pytest.raises(ValueError, match=f"Cannot decode {path}: .*Replace or"):
    DATASETS["folder"](root=folder)
  # Unchecked, it fails when it is read, and no grey picture stands in.
  found = DATASETS["folder"](root=folder, verify=False)
  chain = Preprocess(size=16, resize=16)
  with pytest.raises(tf.errors.InvalidArgumentError):
    list(streams.sweep(Subset.of(found.splits["test"]), chain, batch_size=4))


# TensorFlow Datasets.


class Toy(tfds.core.GeneratorBasedBuilder):
  """As ImageNet-R: only a test split, label ids with gaps."""

  VERSION = tfds.core.Version("1.0.0")
  IDS = (3, 5, 8)

  def _info(self):
    features = tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=[f"n{i}" for i in range(10)]),
      }
    )
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {"test": self._generate_examples()}

  def _generate_examples(self):
    for i in range(50):
      image = np.full((4, 4, 3), i, np.uint8)
      yield i, {"image": image, "label": self.IDS[i % 3]}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  builder = Toy(data_dir=str(folder))
  builder.download_and_prepare()
  stored = [int(e["image"][0, 0, 0]) for e in tfds.as_numpy(_stored(builder))]
  return str(folder), stored


def _stored(builder):
  config = tfds.ReadConfig(interleave_cycle_length=1)
  return builder.as_dataset(split="test", read_config=config)


def _levels(split):
  return [int(tf.io.decode_image(image)[0, 0, 0]) for image in split.images]


def test_tfds_splits_by_stored_order(prepared):
  folder, stored = prepared
  assert stored != sorted(stored)
  found = DATASETS["tfds"](
    builder="toy",
    data_dir=folder,
    train_split="test[:64%]",
    test_split="test[64%:80%]",
    label_ids=Toy.IDS,
  )
  assert found.class_names == ("n3", "n5", "n8")
  train, test = found.splits["train"], found.splits["test"]
  assert train.encoding == test.encoding == "bytes"
  assert _levels(train) == stored[:32] and _levels(test) == stored[32:40]
  assert train.labels.tolist() == [i % 3 for i in stored[:32]]
  chain = Preprocess(size=4, eval="native")
  (batch,) = streams.sweep(Subset.of(test), chain, batch_size=8)
  levels = np.rint(255 * batch["image"][:, 0, 0, 0])
  np.testing.assert_array_equal(levels, stored[32:40])


def test_tfds_label_without_an_id_is_named(prepared):
  splits = {"train_split": "test", "test_split": "test"}
  options = {"builder": "toy", "data_dir": prepared[0], **splits}
  with pytest.raises(ValueError, match=r"labels \[8\], which are not in"):
    DATASETS["tfds"](**options, label_ids=[3, 5])
  with pytest.raises(ValueError, match="empty class.*'n0'"):
    DATASETS["tfds"](**options)


def test_tfds_unknown_split_is_named(prepared):
  with pytest.raises(ValueError, match="Unknown split .train.*test"):
    DATASETS["tfds"](builder="toy", data_dir=prepared[0])


@pytest.mark.parametrize("name", ["cifar100", "imagenet_r"])
def test_unprepared_tfds_says_what_to_run_and_where(tmp_path, name):
  command = f"run: tfds build {name} --data_dir={tmp_path}\n"
  with pytest.raises(FileNotFoundError, match=command) as error:
    DATASETS[name](data_dir=str(tmp_path))
  assert f"put the folder {tmp_path / name}" in str(error.value)


def test_cifar100(monkeypatch):
  # Mocked data are not prepared, and 100 classes need more images than 100.
  monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda _: True)
  with tfds.testing.mock_data(num_examples=1500):
    found = DATASETS["cifar100"]()
  assert found.name == "cifar100" and found.num_classes == 100
  assert len(found.splits["train"]) == 1500
  chain = Preprocess(size=32, eval="native")
  subset = Subset.of(found.splits["test"], [7])
  batch = next(streams.sweep(subset, chain, batch_size=2))
  assert batch["image"].shape == (2, 32, 32, 3)
  assert set(batch["label"]) == {7}


def test_imagenet_r_options():
  ids = tfds_source.IMAGENET_R_IDS
  assert len(ids) == 200 and sorted(set(ids)) == list(ids)
  # First and last ids of some tasks of Split ImageNet-R.
  assert [ids[i] for i in (0, 19, 20, 100, 199)] == [1, 84, 90, 355, 988]
  splits = {
    name: (options["train_split"], options["test_split"])
    for name, options in tfds_source.TFDS_DEFAULTS.items()
    if options["builder"] == "imagenet_r"
  }
  assert splits == {
    "imagenet_r": ("test[:80%]", "test[80%:]"),
    "imagenet_r_tuning": ("test[:64%]", "test[64%:80%]"),
  }
  for name in splits:
    assert DATASETS[name].keywords == tfds_source.TFDS_DEFAULTS[name]
