"""Sources from the user's own files: one npz archive, or folders of images."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from libml import registry
from libml.datasets import lists
from libml.datasets import source
from libml.datasets.expected import Expected

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
# A larger label is a mistake, and every list of classes would be as long.
_MOST_LABEL = 9_999_999
# What TensorFlow's errors say of its graph, and Pillow's of its buffer.
_OF_TENSORFLOW = re.compile(r"^.*Iterator::\S+: |\s*<_io\.[^>]*>")
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def npz(
  *, path: str | os.PathLike[str], classes: Sequence[int] | None = None
) -> source.Source:
  """Returns the arrays of an npz archive.

  Args:
    path: Archive with x_train, x_test (uint8 [N, H, W] or [N, H, W, 1 or 3]),
      y_train, y_test (integer [N]) and, optionally, class_names [C] (text).
    classes: Ids of the classes to keep; they become 0, 1, ... in this order.
      None: all.

  Raises:
    FileNotFoundError: The archive does not exist.
    ValueError: The archive cannot be read, arrays are missing or have other
      shapes or types, or a class does not exist.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(
      f"No file {path}. The data set 'npz' needs an archive with "
      f"{', '.join(_ARRAYS)}, as np.savez writes it."
    )
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
      arrays = {name: archive[name] for name in archive.files}
  except Exception as error:  # malformed files raise whatever a reader meets
    raise ValueError(
      f"Cannot read {path} ({type(error).__name__}: {error}). Save it with "
      "np.savez, with labels as integers and names as text, not as Python "
      "objects."
    ) from error
  missing = [name for name in _ARRAYS if name not in arrays]
  if missing:
    raise ValueError(
      f"{path} has no {', '.join(missing)}; it has {', '.join(arrays)}. Add "
      "the missing arrays."
    )
  splits = {
    key: _npz_split(path, key, arrays[f"x_{key}"], arrays[f"y_{key}"])
    for key in ("train", "test")
  }
  count = 1 + max(int(split.labels.max(initial=0)) for split in splits.values())
  names = tuple(map(str, arrays.get("class_names", range(count))))
  if classes is not None:
    splits = {k: v.select(classes, len(names)) for k, v in splits.items()}
    names = tuple(names[label] for label in classes)
  return source.Source("npz", names, splits, origin=f"file {path.name}")


def folder(
  *,
  root: str | os.PathLike[str],
  train_list: str | None = None,
  test_list: str | None = None,
  test_fraction: float | None = None,
  seed: int = 0,
  domains: Sequence[str] = (),
  others: str | os.PathLike[str] | None = None,
  expected: Mapping[str, Any] | None = None,
  verify: bool = True,
  hashed: int | None = 256,
) -> source.Source:
  """Returns images from root/train/CLASS/* and root/test/CLASS/*.

  With lists or with a test_fraction, all images are in root/CLASS/*. Lists name
  the images of each split; a test_fraction divides them at random. A class id
  is the position in the sorted folder names, unless lists give ids. Files with
  suffixes other than SUFFIXES are ignored.

  Args:
    root: Folder with the folders train and test, or with the class folders.
    train_list: File that names the training images; see `lists.Lists`.
    test_list: File that names the test images; None: no lists.
    test_fraction: Fraction of each class's images that go to the test split;
      None: there are folders train and test, or lists.
    seed: Decides which images go to the test split.
    domains: With lists, folders between root and the class folders: images are
      in root/DOMAIN/CLASS/*, and all domains share the classes. (): none.
    others: Folder of test images of other classes, others/CLASS/*; None: none.
    expected: Fields of `expected.Expected`, with which class names and counts
      are compared; None: no comparison.
    verify: Whether to decode every file once now (some thousand per second),
      so that a broken file is reported here and not hours into a run.
    hashed: As in source.Split: files whose content a resumed run compares with
      those that it started with; None: all.

  Raises:
    FileNotFoundError: A folder or list does not exist.
    ValueError: A class is empty, something named like an image is no file (but
      a pipe or a folder), a class is only in test, or is also among the others;
      the classes are not the expected ones; there are domains without lists;
      a file cannot be decoded (with verify); or what `lists.Lists` raises.
  """
  root = pathlib.Path(root)
  chosen = lists.given(train_list, test_list)
  origin = f"folder {root.name}"
  if chosen:
    layout = "root/DOMAIN/CLASS/" if domains else "root/CLASS/"
    parts = [root / domain for domain in domains] or [root]
    classes = {name for part in parts for name in _folders(part, layout)}
    names = tuple(sorted(classes))
    whole = _folder_split(parts, names)
    splits, names = chosen.divide(whole, whole.images.tolist(), names)
    origin += f", divided by {chosen}"
  elif test_fraction is not None:
    names = tuple(_folders(root, "root/CLASS/"))
    whole = _folder_split([root], names)
    train, test = source.stratify(
      whole.labels, test_fraction, source.generator(seed)
    )
    splits = {"train": whole.rows(train), "test": whole.rows(test)}
    origin += f"; test fraction {test_fraction}, seed {seed}"
  elif domains:
    raise ValueError(
      f"Domains {list(domains)} need lists; set train_list and test_list."
    )
  else:
    names = _train_classes(root)
    splits = {k: _folder_split([root / k], names) for k in ("train", "test")}
  splits = {k: dataclasses.replace(v, hashed=hashed) for k, v in splits.items()}
  further = {} if others is None else _others(pathlib.Path(others), names)
  found = source.Source("folder", names, splits, origin, **further)
  if expected is not None:
    registry.build(
      {"expected": Expected}, "check", "expected", **expected
    ).check(found)
  if verify:
    for split in (*splits.values(), found.others):
      if split is not None:
        check_decodable(split.images)
  return found


def _npz_split(
  path: pathlib.Path, key: str, images: np.ndarray, labels: np.ndarray
) -> source.Split:
  labels = labels.reshape(-1) if labels.shape[1:] in ((), (1,)) else labels
  if labels.dtype.kind not in "iu":
    raise ValueError(
      f"{path}: the labels y_{key} are {labels.dtype} and must be integers; "
      "convert them and save the file again."
    )
  outside = labels[(labels < 0) | (labels > _MOST_LABEL)]
  if outside.size:
    raise ValueError(
      f"{path}: y_{key} holds the label {outside[0]}; labels must lie in 0 to "
      f"{_MOST_LABEL:,}. Number the classes from 0, and save the file again."
    )
  if images.ndim == 3:
    images = images[..., None]
  try:
    return source.Split(images, labels.astype(np.int32))
  except ValueError as error:
    raise ValueError(f"{path}, x_{key}, y_{key}: {error}") from error


def _train_classes(root: pathlib.Path) -> tuple[str, ...]:
  layout = "root/train/CLASS/ and root/test/CLASS/"
  names = tuple(_folders(root / "train", layout))
  unknown = sorted(set(_folders(root / "test", layout)) - set(names))
  if unknown:
    raise ValueError(
      f"{root / 'test'} has classes that {root / 'train'} does not have: "
      f"{', '.join(unknown)}. Add training images or remove these folders."
    )
  return names


def _folders(path: pathlib.Path, layout: str) -> list[str]:
  if not path.is_dir():
    raise FileNotFoundError(
      f"No folder {path}. The data set 'folder' needs {layout} with image "
      "files."
    )
  return sorted(
    entry.name
    for entry in path.iterdir()
    if entry.is_dir() and not entry.name.startswith(".")
  )


def _others(root: pathlib.Path, names: Sequence[str]) -> dict[str, Any]:
  """Returns the fields of a Source that hold the other classes."""
  other_names = tuple(_folders(root, "others/CLASS/"))
  if not other_names:
    raise ValueError(
      f"{root} has no class folders; add some, or leave out the option others."
    )
  split = _folder_split([root], other_names)
  labels = split.labels + np.int32(len(names))
  return {
    "others": dataclasses.replace(split, labels=labels),
    "other_names": other_names,
  }


def _folder_split(
  parts: Sequence[pathlib.Path], names: Sequence[str]
) -> source.Split:
  paths, labels = [], []
  for label, name in enumerate(names):
    files = sorted(
      str(file)
      for part in parts
      for file in (part / name).glob("*")
      if file.suffix.lower() in SUFFIXES
    )
    paths += files
    labels += [label] * len(files)
  for path in paths:
    if not os.path.isfile(path):  # reading a pipe or a device would not end
      raise ValueError(
        f"{path} is named like an image, but it is no regular file: remove it."
      )
  images = np.array(paths, object)
  return source.Split(images, np.array(labels, np.int32), encoding="path")


def check_decodable(paths: np.ndarray) -> None:
  """Checks that all image files can be decoded.

  Args:
    paths: Paths of the files, [N].

  Raises:
    ValueError: A file cannot be decoded; the message names the first one.
  """
  import tensorflow as tf

  from libml.images import preprocess

  @tf.autograph.experimental.do_not_convert
  def size(path: tf.Tensor) -> tf.Tensor:
    return tf.size(preprocess.decode(tf.io.read_file(path)))

  if not len(paths):
    return
  data = tf.data.Dataset.from_tensor_slices(paths)
  data = data.map(size, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
  results = data.as_numpy_iterator()
  for path in paths:
    try:
      next(results)
    except tf.errors.OpError as error:
      reason = _OF_TENSORFLOW.sub("", error.message.splitlines()[0])
      raise ValueError(
        f"Cannot decode {path}: {reason.rstrip('.')}. Replace or remove it; "
        f"allowed are {', '.join(SUFFIXES)} files."
      ) from error
