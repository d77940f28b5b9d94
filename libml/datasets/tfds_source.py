"""Sources from TensorFlow Datasets that were prepared beforehand."""

import pathlib
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from libml.datasets import source

# ImageNet ids of the 200 classes of ImageNet-R, ascending; the position is the
# label (Hendrycks et al., 2021).
# fmt: off
IMAGENET_R_IDS = (
  1, 2, 4, 6, 8, 9, 11, 13, 22, 23, 26, 29, 31, 39, 47, 63, 71, 76, 79, 84,
  90, 94, 96, 97, 99, 100, 105, 107, 113, 122, 125, 130, 132, 144, 145, 147,
  148, 150, 151, 155,
  160, 161, 162, 163, 171, 172, 178, 187, 195, 199, 203, 207, 208, 219, 231,
  232, 234, 235, 242, 245,
  247, 250, 251, 254, 259, 260, 263, 265, 267, 269, 276, 277, 281, 288, 289,
  291, 292, 293, 296, 299,
  301, 308, 309, 310, 311, 314, 315, 319, 323, 327, 330, 334, 335, 337, 338,
  340, 341, 344, 347, 353,
  355, 361, 362, 365, 366, 367, 368, 372, 388, 390, 393, 397, 401, 407, 413,
  414, 425, 428, 430, 435,
  437, 441, 447, 448, 457, 462, 463, 469, 470, 471, 472, 476, 483, 487, 515,
  546, 555, 558, 570, 579,
  583, 587, 593, 594, 596, 609, 613, 617, 621, 629, 637, 657, 658, 701, 717,
  724, 763, 768, 774, 776,
  779, 780, 787, 805, 812, 815, 820, 824, 833, 847, 852, 866, 875, 883, 889,
  895, 907, 928, 931, 932,
  933, 934, 936, 937, 943, 945, 947, 948, 949, 951, 953, 954, 957, 963, 965,
  967, 980, 981, 983, 988,
)
# fmt: on

# imagenet_r has a single split: training and test images are parts of it, by
# stored order. For choosing hyper-parameters, the training part is divided.
_IMAGENET_R = {"builder": "imagenet_r", "label_ids": IMAGENET_R_IDS}

# Rows of DATASETS that are `tfds` with these options.
TFDS_DEFAULTS: dict[str, dict[str, Any]] = {
  "cifar100": {"builder": "cifar100"},
  "imagenet_r": {
    **_IMAGENET_R,
    "train_split": "test[:80%]",
    "test_split": "test[80%:]",
  },
  "imagenet_r_tuning": {
    **_IMAGENET_R,
    "train_split": "test[:64%]",
    "test_split": "test[64%:80%]",
  },
}


def tfds(
  *,
  builder: str,
  data_dir: str | None = None,
  train_split: str = "train",
  test_split: str = "test",
  label_ids: Sequence[int] | None = None,
) -> source.Source:
  """Returns a prepared data set of TensorFlow Datasets; never downloads.

  Images stay encoded in memory, so a JPEG is decoded only where it is cropped.

  Args:
    builder: "cifar100", "domainnet/sketch", ...
    data_dir: Folder of prepared data sets; None: tfds's own.
    train_split: What to train on, such as "train[:90%]".
    test_split: What to test on.
    label_ids: Ids of the builder in the order of our labels, where it uses
      only some of its ids; None: all.

  Raises:
    FileNotFoundError: The data set is not prepared in data_dir.
    ValueError: A split that the builder does not have, or a label that is not
      in label_ids.
  """
  import tensorflow as tf

  tf.config.set_visible_devices([], "GPU")
  prepared = _prepared(builder, data_dir)
  feature = prepared.info.features["label"]
  ids = range(feature.num_classes) if label_ids is None else label_ids
  labels = {number: label for label, number in enumerate(ids)}
  return source.Source(
    name=builder,
    class_names=tuple(feature.int2str(number) for number in ids),
    splits={
      "train": _split(prepared, train_split, labels),
      "test": _split(prepared, test_split, labels),
    },
    origin=f"tfds {prepared.info.full_name}, train {train_split}, test "
    f"{test_split}",
  )


def _prepared(name: str, data_dir: str | None) -> Any:
  """Returns the builder, or raises saying what to run and where."""
  import tensorflow_datasets

  folder = data_dir or str(tensorflow_datasets.core.constants.DATA_DIR)
  found = tensorflow_datasets.builder(name, data_dir=data_dir)
  if not found.is_prepared():
    raise FileNotFoundError(
      f"Data set {name!r} is not prepared in {folder}. Where there is a "
      f"network, run: tfds build {name} --data_dir={folder}\n"
      f"Then put the folder {pathlib.Path(found.data_dir)} at the same place "
      "here, or set data_dir to the folder that holds it."
    )
  return found


def _split(prepared: Any, name: str, labels: Mapping[int, int]) -> source.Split:
  import tensorflow_datasets

  data = prepared.as_dataset(
    split=name,
    batch_size=1024,
    shuffle_files=False,
    decoders={"image": tensorflow_datasets.decode.SkipDecoding()},
    # One file after the other: the stored order, which fixes the row numbers.
    read_config=tensorflow_datasets.ReadConfig(
      interleave_cycle_length=1, try_autocache=False
    ),
  )
  images, ids = [], []
  for batch in tensorflow_datasets.as_numpy(data):
    images.append(batch["image"])
    ids.append(batch["label"])
  ids = np.concatenate(ids) if ids else np.zeros(0, np.int64)
  unknown = sorted(set(ids.tolist()) - set(labels))
  if unknown:
    raise ValueError(
      f"Split {name!r} of {prepared.name!r} has the labels {unknown}, which "
      "are not in label_ids; add them there."
    )
  return source.Split(
    np.concatenate(images) if images else np.zeros(0, object),
    np.array([labels[i] for i in ids.tolist()], np.int32),
    encoding="bytes",
  )
