"""Sources from prepared data sets of TensorFlow Datasets (TFDS)."""

import pathlib
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from libml.datasets import builders
from libml.datasets import lists
from libml.datasets import memory
from libml.datasets import source


def tfds(
  *,
  builder: str,
  data_dir: str | None = None,
  train_split: str = "train",
  test_split: str = "test",
  train_list: str | None = None,
  test_list: str | None = None,
  label_ids: Sequence[int] | None = None,
) -> source.Source:
  """Returns a prepared data set of TensorFlow Datasets; never downloads.

  Images stay encoded in memory, so that of a JPEG only the crop is decoded.

  Args:
    builder: Name in TFDS, such as "cifar100" or "domainnet/sketch".
    data_dir: Folder of prepared data sets; None: the default of TFDS.
    train_split: Split to train on, such as "train[:90%]".
    test_split: Split to test on.
    train_list: File that names the training images; see `lists.Lists`. With
      lists, all images are taken from train_split, and test_split is not used.
    test_list: File that names the test images; None: no lists.
    label_ids: The builder's label ids that occur, in the order of our labels;
      None: all.

  Raises:
    FileNotFoundError: The data set is not prepared in data_dir, or a list does
      not exist.
    ValueError: The builder does not have a split, a label is not in label_ids,
      the images do not fit into memory, or what `lists.Lists` raises.
  """
  prepared = find(builder, data_dir)
  feature = prepared.info.features["label"]
  ids = range(feature.num_classes) if label_ids is None else label_ids
  labels = {number: label for label, number in enumerate(ids)}
  chosen = lists.given(train_list, test_list)
  names = tuple(feature.int2str(number) for number in ids)
  if chosen:
    memory.check([(prepared, train_split)])
    files = _file_names(prepared, train_split)
    whole = read(prepared, train_split, labels)
    splits, names = chosen.divide(whole, files, names)
    said = f"{train_split} divided by {chosen}"
  else:
    memory.check([(prepared, train_split), (prepared, test_split)])
    splits = {
      "train": read(prepared, train_split, labels),
      "test": read(prepared, test_split, labels),
    }
    said = f"train {train_split}, test {test_split}"
  return source.Source(
    name=builder,
    class_names=names,
    splits=splits,
    origin=f"tfds {prepared.info.full_name}, {said}",
  )


def find(name: str, data_dir: str | None) -> Any:
  """Returns the builder of a prepared data set.

  Args:
    name: Name in TFDS, or key of BUILDERS.
    data_dir: Folder of prepared data sets; None: the default of TFDS.

  Raises:
    FileNotFoundError: The data set is not prepared there; the message says
      which command prepares it.
  """
  import tensorflow as tf
  import tensorflow_datasets

  tf.config.set_visible_devices([], "GPU")
  folder = data_dir or str(tensorflow_datasets.core.constants.DATA_DIR)
  if name in builders.BUILDERS:
    builders.load(name)
  found = tensorflow_datasets.builder(name, data_dir=data_dir)
  if not found.is_prepared():
    raise FileNotFoundError(
      f"Data set {name!r} is not prepared in {folder}. "
      f"{builders.remedy(name, folder)}\n"
      f"Then put the folder {pathlib.Path(found.data_dir)} at the same place "
      "here, or set data_dir to the folder that holds it."
    )
  return found


def read(prepared: Any, split: str, labels: Mapping[int, int]) -> source.Split:
  """Returns a split in its stored order, with encoded images.

  Args:
    prepared: Builder from `find`.
    split: Its name, with slices or sums ("train[:10%]", "s3+s7").
    labels: From label ids of the builder to our labels.

  Raises:
    ValueError: The builder does not have the split, or an id is not in
      `labels`.
  """
  entries = _entries(prepared, split, ("image", "label"))
  ids = entries["label"].tolist()
  unknown = sorted(set(ids) - set(labels))
  if unknown:
    raise ValueError(
      f"Split {split!r} of {prepared.name!r} has the labels {unknown}, which "
      "are not in label_ids; add them there."
    )
  numbers = np.array([labels[i] for i in ids], np.int32)
  return source.Split(entries["image"], numbers, encoding="bytes")


def _file_names(prepared: Any, split: str) -> list[str]:
  if "file_name" not in prepared.info.features:
    raise ValueError(
      f"{prepared.name!r} does not store file names (it has "
      f"{', '.join(prepared.info.features)}), so lists cannot divide it. "
      "Divide it by slices, or unpack the images and use the data set 'folder'."
    )
  entries = _entries(prepared, split, ("file_name",))
  return [name.decode() for name in entries["file_name"]]


def _entries(
  prepared: Any, split: str, features: Sequence[str]
) -> dict[str, np.ndarray]:
  """Returns some features of all examples of a split."""
  import tensorflow_datasets

  data = prepared.as_dataset(
    split=split,
    batch_size=1024,
    shuffle_files=False,
    decoders={"image": tensorflow_datasets.decode.SkipDecoding()},
    # Read one file after the other, in stored order: row numbers must not
    # change from run to run.
    read_config=tensorflow_datasets.ReadConfig(
      interleave_cycle_length=1, try_autocache=False
    ),
  )
  data = data.map(lambda example: {name: example[name] for name in features})
  found = {name: [np.zeros(0, object)] for name in features}
  for batch in tensorflow_datasets.as_numpy(data):
    for name in features:
      found[name].append(batch[name])
  return {name: np.concatenate(parts) for name, parts in found.items()}
