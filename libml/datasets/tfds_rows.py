"""Benchmarks from TensorFlow Datasets, with the splits that we use."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from libml.datasets import collection
from libml.datasets import memory
from libml.datasets import source
from libml.datasets import tfds_source

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

DOMAINS = ("real", "painting", "clipart", "quickdraw", "infograph", "sketch")

# Sessions of CORe50 in the order of L2P (Wang et al., 2022).
CORE50_TRAIN = (1, 2, 4, 5, 6, 8, 9, 11)
CORE50_TEST = (3, 7, 10)

# imagenet_r has a single split. We divide it by stored order into training and
# test images, and for tuning the training images once more.
_IMAGENET_R = {"builder": "imagenet_r", "label_ids": IMAGENET_R_IDS}

# Name in DATASETS -> options of `tfds`.
TFDS_DEFAULTS: dict[str, dict[str, Any]] = {
  **{
    name: {"builder": name}
    for name in (
      "cifar10",
      "cifar100",
      "mnist",
      "kmnist",
      "fashion_mnist",
      "svhn_cropped",
      "caltech_birds2011",
      "oxford_iiit_pet",
      *(f"domainnet/{domain}" for domain in DOMAINS),
    )
  },
  # Its test split has no labels.
  "imagenet2012": {"builder": "imagenet2012", "test_split": "validation"},
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
  # These have a single split; the division into parts is ours.
  **{
    name: {
      "builder": name,
      "train_split": "train[:80%]",
      "test_split": "train[80%:]",
    }
    for name in ("resisc45", "plant_village")
  },
  # A single split, too; divided as in L2P.
  "not_mnist": {
    "builder": "not_mnist",
    "train_split": "train[:80%]",
    "test_split": "train[80%:]",
  },
}


def core50(
  *,
  data_dir: str | None = None,
  sessions: Sequence[int] = CORE50_TRAIN,
  test_sessions: Sequence[int] = CORE50_TEST,
  portion: str = "",
  per_class: int | None = None,
) -> collection.Collection:
  """Returns CORe50 by session; all parts share one test split.

  Args:
    data_dir: Folder of prepared data sets; None: the default of TFDS.
    sessions: Training sessions, in the order of training.
    test_sessions: Sessions of the test split.
    portion: Slice of each session that is read, such as "[:10%]"; "": all.
    per_class: As in `collection.limit`; None: all images.

  Raises:
    FileNotFoundError: The data set is not prepared in data_dir.
    ValueError: A session does not exist or is named twice, or the images do
      not fit into memory.
  """
  chosen = [*sessions, *test_sessions]
  wrong = [n for n in chosen if n not in range(1, 12) or chosen.count(n) > 1]
  if wrong or not sessions or not test_sessions:
    raise ValueError(
      f"Sessions {list(sessions)} and test sessions {list(test_sessions)} "
      "must be different numbers in 1 to 11, at least one of each."
    )
  prepared = tfds_source.find("core50", data_dir)
  trains = {number: f"s{number}{portion}" for number in sessions}
  test = "+".join(f"s{number}{portion}" for number in test_sessions)
  memory.check([(prepared, split) for split in (*trains.values(), test)])
  classes = tuple(prepared.info.features["label"].names)
  labels = {number: number for number in range(len(classes))}
  test_split = tfds_source.read(prepared, test, labels)
  whole = collection.Collection(
    "core50",
    tuple(
      source.Source(
        name=f"core50_s{number}",
        class_names=classes,
        splits={
          "train": tfds_source.read(prepared, train, labels),
          "test": test_split,
        },
        origin=f"tfds {prepared.info.full_name}, train {train}, test {test}",
      )
      for number, train in trains.items()
    ),
  )
  return whole if per_class is None else collection.limit(whole, per_class)


def domainnet(
  *,
  data_dir: str | None = None,
  domains: Sequence[str] = DOMAINS,
  portion: str = "",
  per_class: int | None = None,
) -> collection.Collection:
  """Returns DomainNet by domain (Peng et al., 2019).

  Args:
    data_dir: Folder of prepared data sets; None: the default of TFDS.
    domains: Some of DOMAINS, in the order of training.
    portion: Slice of each split that is read, such as "[:10%]"; "": all.
    per_class: As in `collection.limit`; None: all images.

  Raises:
    FileNotFoundError: A domain is not prepared in data_dir.
    ValueError: A domain is unknown or named twice, or the images do not fit
      into memory.
  """
  _find_domains(data_dir, domains, portion)
  whole = collection.Collection(
    "domainnet",
    tuple(
      tfds_source.tfds(
        builder=f"domainnet/{domain}",
        data_dir=data_dir,
        train_split=f"train{portion}",
        test_split=f"test{portion}",
      )
      for domain in domains
    ),
  )
  return whole if per_class is None else collection.limit(whole, per_class)


def domainnet_classes(
  *,
  data_dir: str | None = None,
  domains: Sequence[str] = DOMAINS,
  portion: str = "",
) -> source.Source:
  """Returns DomainNet as one source of 345 classes over several domains.

  The splits are those of TFDS, joined domain after domain. Lists cannot divide
  them, because TFDS does not store file names here. To use lists, unpack the
  images and use `folder` with its option domains.

  Args:
    data_dir: Folder of prepared data sets; None: the default of TFDS.
    domains: Some of DOMAINS.
    portion: Slice of each split that is read, such as "[:10%]"; "": all.

  Raises:
    FileNotFoundError: A domain is not prepared in data_dir.
    ValueError: There is no domain, one is unknown or named twice, or the images
      do not fit into memory.
  """
  prepared = _find_domains(data_dir, domains, portion)
  classes = tuple(prepared[0].info.features["label"].names)
  labels = {number: number for number in range(len(classes))}
  splits = {}
  for key in ("train", "test"):
    parts = [tfds_source.read(p, f"{key}{portion}", labels) for p in prepared]
    splits[key] = source.Split(
      np.concatenate([part.images for part in parts]),
      np.concatenate([part.labels for part in parts]),
      encoding="bytes",
    )
  names = ", ".join(p.info.full_name for p in prepared)
  return source.Source(
    name="domainnet_classes",
    class_names=classes,
    splits=splits,
    origin=f"tfds {names}, train{portion}, test{portion}",
  )


def _find_domains(
  data_dir: str | None, domains: Sequence[str], portion: str
) -> list[Any]:
  """Returns the domains' builders; checks names and memory."""
  wrong = [domain for domain in domains if domain not in DOMAINS]
  if wrong or not domains or len(set(domains)) < len(domains):
    raise ValueError(
      f"Domains {list(domains)} must be different ones of {list(DOMAINS)}."
    )
  prepared = [tfds_source.find(f"domainnet/{d}", data_dir) for d in domains]
  memory.check(
    [(p, f"{key}{portion}") for p in prepared for key in ("train", "test")]
  )
  return prepared
