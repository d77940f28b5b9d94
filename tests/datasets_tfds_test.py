"""Prepared data of TensorFlow Datasets: what is read and what refused."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from libml.datasets import DATASETS
from libml.datasets import Subset
from libml.datasets import builders
from libml.datasets import memory
from libml.datasets import tfds_rows
from libml.images.preprocess import Preprocess
from libml.pipeline import streams


class Toy(tfds.core.GeneratorBasedBuilder):
  """As ImageNet-R: only a test split, label ids with gaps."""

  VERSION = tfds.core.Version("1.0.0")
  IDS = (3, 5, 8)

  def _info(self):
    features = tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=[f"n{i}" for i in range(10)]),
        "file_name": tfds.features.Text(),
      }
    )
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {"test": self._generate_examples()}

  def _generate_examples(self):
    for i in range(50):
      image = np.full((4, 4, 3), i, np.uint8)
      label = self.IDS[i % 3]
      name = f"n{label}/art_{i}.jpg"
      yield i, {"image": image, "label": label, "file_name": name}


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


@pytest.mark.parametrize("name", ["core50", "not_mnist"])
def test_unprepared_set_of_ours_says_our_command(tmp_path, name):
  command = (
    f"run: python -m libml.datasets.prepare {name} --source DIR "
    f"--data_dir={tmp_path}\n"
  )
  with pytest.raises(FileNotFoundError, match=command) as error:
    DATASETS[name](data_dir=str(tmp_path))
  assert f"put the folder {tmp_path / name}" in str(error.value)


def _lists(folder, **lines):
  for name, images in lines.items():
    (folder / name).write_text("\n".join(images))
  return {name: str(folder / name) for name in lines}


def test_lists_choose_images_of_tfds(prepared, tmp_path):
  folder, stored = prepared
  names = [f"imagenet-r/n{Toy.IDS[i % 3]}/art_{i}.jpg" for i in range(50)]
  lists = _lists(tmp_path, train_list=names[:20], test_list=names[40:42])
  options = {"builder": "toy", "data_dir": folder, "label_ids": Toy.IDS}
  found = DATASETS["tfds"](**options, train_split="test", **lists)
  train, test = found.splits["train"], found.splits["test"]
  assert _levels(train) == [i for i in stored if i < 20]
  assert train.labels.tolist() == [i % 3 for i in stored if i < 20]
  assert sorted(_levels(test)) == [40, 41]
  assert "test divided by train_list, test_list" in found.origin
  with pytest.raises(ValueError, match=r"of the 20 images.* these 25 images"):
    DATASETS["tfds"](**options, train_split="test[:50%]", **lists)


def test_class_ids_of_yaml_lists_are_ours(prepared, tmp_path):
  folder, stored = prepared
  ids = {3: 1, 5: 2, 8: 0}
  for name, images in (("train", range(20)), ("test", range(40, 42))):
    labels = [Toy.IDS[i % 3] for i in images]
    lines = [f"- n{n}/art_{i}.jpg" for n, i in zip(labels, images, strict=True)]
    targets = [f"- {ids[label]}" for label in labels]
    content = ["data:", *lines, "targets:", *targets]
    (tmp_path / f"{name}.yaml").write_text("\n".join(content))
  found = DATASETS["tfds"](
    builder="toy",
    data_dir=folder,
    label_ids=Toy.IDS,
    train_split="test",
    train_list=str(tmp_path / "train.yaml"),
    test_list=str(tmp_path / "test.yaml"),
  )
  assert found.class_names == ("n8", "n3", "n5")
  train = found.splits["train"]
  assert _levels(train) == [i for i in stored if i < 20]
  assert train.labels.tolist() == [(i + 1) % 3 for i in stored if i < 20]


def test_lists_need_stored_names(tmp_path, mocked):
  lists = _lists(tmp_path, train_list=["a/0.png"], test_list=["a/1.png"])
  with pytest.raises(ValueError, match="'cifar10' does not store file names"):
    DATASETS["cifar10"](**lists)


# What does not fit into memory.


def test_images_larger_than_memory_are_refused(prepared, monkeypatch):
  folder, _ = prepared
  (file,) = pathlib.Path(folder).glob("toy/*/*.tfrecord*")
  size = file.stat().st_size
  options = {"builder": "toy", "data_dir": folder, "label_ids": Toy.IDS}
  splits = {"train_split": "test[:60%]", "test_split": "test[60%:80%]"}
  monkeypatch.setattr(memory, "available", lambda: int(1.61 * size))
  assert len(DATASETS["tfds"](**options, **splits).splits["train"]) == 30
  monkeypatch.setattr(memory, "available", lambda: int(1.59 * size))
  with pytest.raises(
    ValueError, match=r"toy/1.0.0 test\[:60%\].*'train\[:99%\]'"
  ):
    DATASETS["tfds"](**options, **splits)
  monkeypatch.setattr(memory, "available", lambda: None)
  assert DATASETS["tfds"](**options, **splits).num_classes == 3


def test_available_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
  monkeypatch.setattr(memory, "_GROUP", tmp_path)
  assert memory.available() is None
  (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  7 kB\n")
  assert memory.available() == 7 * 1024
  (tmp_path / "memory.max").write_text("max\n")
  assert memory.available() == 7 * 1024
  (tmp_path / "memory.max").write_text("5000\n")
  (tmp_path / "memory.stat").write_text("anon 1000\nfile 3000\n")
  assert memory.available() == 4000


# Rows of DATASETS on mocked data: the classes and image shape of each set.


@pytest.fixture
def mocked(monkeypatch):
  """Two images a class, of the builder's shape; yields the splits read."""
  splits = []

  def as_dataset(self, split, **options):
    splits.append(f"{self.info.full_name} {split}")
    feature = self.info.features["image"]
    shape = [size or 16 for size in feature.shape]
    pixel = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    image = feature.encode_example(pixel)
    labels = np.arange(2 * self.info.features["label"].num_classes) // 2
    data = tf.data.Dataset.from_tensor_slices(labels)
    return data.map(lambda label: {"image": image, "label": label})

  monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda _: True)
  with tfds.testing.mock_data(as_dataset_fn=as_dataset):
    yield splits


@pytest.mark.parametrize(
  ("name", "classes", "shape", "splits"),
  [
    ("cifar10", 10, (32, 32), ["train", "test"]),
    ("cifar100", 100, (32, 32), ["train", "test"]),
    ("mnist", 10, (28, 28), ["train", "test"]),
    ("kmnist", 10, (28, 28), ["train", "test"]),
    ("fashion_mnist", 10, (28, 28), ["train", "test"]),
    ("svhn_cropped", 10, (32, 32), ["train", "test"]),
    ("not_mnist", 10, (28, 28), ["train[:80%]", "train[80%:]"]),
    ("imagenet2012", 1000, (16, 16), ["train", "validation"]),
    *((f"domainnet/{domain}", 345, (16, 16), ["train", "test"])
      for domain in tfds_rows.DOMAINS),
  ],
)  # fmt: skip
def test_rows(mocked, name, classes, shape, splits):
  found = DATASETS[name]()
  assert (found.name, found.num_classes) == (name, classes)
  assert [split.split(" ")[1] for split in mocked] == splits
  assert all(split.startswith(f"{name}/") for split in mocked)
  assert found.splits["test"].labels.tolist() == (
    np.repeat(np.arange(classes), 2).tolist()
  )
  chain = Preprocess(size=shape[0], eval="native")
  subset = Subset.of(found.splits["train"], [7])
  (batch,) = streams.sweep(subset, chain, batch_size=2)
  assert batch["image"].shape == (2, *shape, 3)
  assert set(batch["label"]) == {7}


def test_every_row_is_known_to_tfds_or_ours():
  for options in tfds_rows.TFDS_DEFAULTS.values():
    name = options["builder"]
    if name not in builders.BUILDERS:
      assert tfds.builder_cls(name.split("/")[0])


def test_domainnet_by_domain(mocked):
  found = DATASETS["domainnet"](domains=["sketch", "real"], per_class=1)
  assert [part.name for part in found.parts] == [
    "domainnet/sketch",
    "domainnet/real",
  ]
  assert {len(part.splits["train"]) for part in found.parts} == {345}
  assert len(found.parts) * 2 == len(mocked)
  mocked.clear()
  assert len(DATASETS["domainnet"](portion="[:9%]").parts) == 6
  assert {split.split(" ")[1] for split in mocked} == {
    "train[:9%]",
    "test[:9%]",
  }
  for domains in (["sketch", "sketch"], ["photo"]):
    with pytest.raises(ValueError, match="different ones of .*'quickdraw'"):
      DATASETS["domainnet"](domains=domains)


def test_domainnet_as_classes(mocked):
  domains = ("sketch", "real")
  found = DATASETS["domainnet_classes"](domains=domains, portion="[:9%]")
  assert (found.name, found.num_classes) == ("domainnet_classes", 345)
  assert found.class_names[:2] == ("aircraft_carrier", "airplane")
  assert [split.split("/")[1] for split in mocked] == 2 * list(domains)
  assert [split.split(" ")[1] for split in mocked] == [
    *2 * ("train[:9%]",),
    *2 * ("test[:9%]",),
  ]
  for split in found.splits.values():
    labels = np.repeat(np.arange(345), 2).tolist()
    assert split.labels.tolist() == 2 * labels and len(split.images) == 4 * 345
  for domains in (["photo"], []):
    with pytest.raises(ValueError, match="different ones of .*'quickdraw'"):
      DATASETS["domainnet_classes"](domains=domains)


def test_imagenet_r_options():
  ids = tfds_rows.IMAGENET_R_IDS
  assert len(ids) == 200 and sorted(set(ids)) == list(ids)
  # First and last ids of some tasks of Split ImageNet-R.
  assert [ids[i] for i in (0, 19, 20, 100, 199)] == [1, 84, 90, 355, 988]
  splits = {
    name: (options["train_split"], options["test_split"])
    for name, options in tfds_rows.TFDS_DEFAULTS.items()
    if options["builder"] == "imagenet_r"
  }
  assert splits == {
    "imagenet_r": ("test[:80%]", "test[80%:]"),
    "imagenet_r_tuning": ("test[:64%]", "test[64%:80%]"),
  }
  for name in splits:
    assert DATASETS[name].keywords == tfds_rows.TFDS_DEFAULTS[name]
