"""Two files that list the training and the test images by name."""

import collections
import dataclasses
import pathlib
from collections.abc import Collection
from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml

from libml.datasets import source
from libml.datasets import text


@dataclasses.dataclass(frozen=True)
class Lists:
  """Two files that name images: text with one name per line, or YAML.

  In a text file, empty lines and lines that start with "#" are ignored. A
  ".yaml" file holds `data`, the names, and optionally `targets`, the class id
  of each, as CODA-Prompt's lists do (Smith et al., 2023). These ids replace the
  ids of the data set, so that an order of ids names the same classes as in
  CODA-Prompt. Without `targets` the ids of the data set stay.

  Names are compared by their last two components (n01443537/art_0.jpg), or by
  the last one if the images' names have only one.

  Attributes:
    train: Path of the list of training images.
    test: Path of the list of test images.
  """

  train: str
  test: str

  def __str__(self) -> str:
    """Names of the files, for a source's origin."""
    return f"{pathlib.Path(self.train).name}, {pathlib.Path(self.test).name}"

  def divide(
    self, whole: source.Split, names: Sequence[str], classes: Sequence[str]
  ) -> tuple[dict[str, source.Split], tuple[str, ...]]:
    """Returns the images that the lists name, and the names of the classes.

    Args:
      whole: All images.
      names: [len(whole)], the images' names.
      classes: One name per class; the position is the label in `whole`.

    Returns:
      {"train": Split, "test": Split}, with images in the order of `whole` and
      without those that no list names; and one name per class, whose position
      is the label in these splits.

    Raises:
      FileNotFoundError: A list does not exist.
      ValueError: A file has another form or names no image, a listed name
        matches no image or several, a name is in both lists, or `targets` do
        not agree with the classes of the images.
    """
    depth = min(2, max((name.count("/") + 1 for name in names), default=1))
    keys = [_key(name, depth) for name in names]
    listed = self._listed(keys, depth)
    rows = {
      split: np.flatnonzero([key in wanted for key in keys])
      for split, wanted in listed.items()
    }
    splits = {split: whole.rows(rows[split]) for split in rows}
    labels = dict(zip(keys, whole.labels.tolist(), strict=True))
    pairs = {
      (labels[key], target)
      for targets in listed.values()
      for key, target in targets.items()
      if target is not None
    }
    order = self._class_order(pairs, classes)
    ids = np.empty(len(classes), np.int32)
    ids[order] = np.arange(len(classes))
    return {
      key: dataclasses.replace(split, labels=ids[split.labels])
      for key, split in splits.items()
    }, tuple(classes[label] for label in order)

  def _listed(
    self, keys: Sequence[str], depth: int
  ) -> dict[str, dict[str, int | None]]:
    """Returns the class id, or None, of each key in a list."""
    count = collections.Counter(keys)
    listed = {}
    for split, path in (("train", self.train), ("test", self.test)):
      listed[split] = {_key(n, depth): t for n, t in _read(path).items()}
      wrong = [key for key in listed[split] if count[key] != 1]
      if wrong:
        raise ValueError(
          f"{len(wrong)} of the {len(listed[split])} images that {path} names "
          f"match no image of the data set, or several: {_first(wrong)}. Only "
          f"the end of a name counts ({'CLASS/' * (depth - 1)}FILE). Correct "
          f"the list, or the data set, which has these {len(keys)} images: "
          f"{_first(keys)}."
        )
    twice = sorted(set(listed["train"]) & set(listed["test"]))
    if twice:
      raise ValueError(
        f"{self.train} and {self.test} both name {len(twice)} images: "
        f"{_first(twice)}. Remove them from one of the two."
      )
    return listed

  def _class_order(
    self, pairs: Collection[tuple[int, int]], classes: Sequence[str]
  ) -> list[int]:
    """Returns the labels in the order of the lists' class ids.

    Args:
      pairs: Pairs (label, target) that occur among the listed images.
      classes: One name per label.
    """
    every = list(range(len(classes)))
    if not pairs:
      return every
    order = sorted((target, label) for label, target in pairs)
    if [t for t, _ in order] == sorted(label for _, label in order) == every:
      return [label for _, label in order]
    uses = collections.Counter(target for _, target in pairs)
    wrong = []
    for label, name in enumerate(classes):
      targets = sorted(target for n, target in pairs if n == label)
      if len(targets) != 1 or uses[targets[0]] != 1 or targets[0] not in every:
        wrong.append(f"{name!r} has {targets}")
    raise ValueError(
      f"The targets in {self.train} and {self.test} must be one id for each of "
      f"the {len(classes)} classes, 0 to {len(classes) - 1}: {_first(wrong)}. "
      "Correct them, or use text files, which have no targets."
    )


def given(train_list: str | None, test_list: str | None) -> Lists | None:
  """Returns the lists that the options name, None if both are None.

  Raises:
    ValueError: Only one of the two is None.
  """
  if train_list is None and test_list is None:
    return None
  if train_list is None or test_list is None:
    raise ValueError(
      f"train_list is {train_list!r} and test_list {test_list!r}; give both "
      "or none."
    )
  return Lists(train_list, test_list)


def _key(name: str, depth: int) -> str:
  return "/".join(name.split("/")[-depth:])


def _first(names: Sequence[str]) -> str:
  return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _read(path: str) -> dict[str, int | None]:
  """Returns the class id, or None, of each name in a file."""
  file = pathlib.Path(path)
  if not file.is_file():
    raise FileNotFoundError(
      f"No list {path}. Give a text file with one image name per line, or a "
      ".yaml file with the names under 'data'."
    )
  if file.suffix in (".yaml", ".yml"):
    listed = _read_yaml(file)
  else:
    lines = [line.strip() for line in text.read(file).splitlines()]
    listed = dict.fromkeys(n for n in lines if n and not n.startswith("#"))
  if not listed:
    raise ValueError(
      f"The list {path} names no image; write one image name per line."
    )
  return listed


def _read_yaml(path: pathlib.Path) -> dict[str, int | None]:
  # The loader in C, which most platforms have, takes 3 s for DomainNet's
  # 330,000 names, a seventh of SafeLoader's time.
  loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
  try:
    found = yaml.load(text.read(path), Loader=loader)
  except yaml.YAMLError as error:
    raise ValueError(
      f"Cannot read {path}: {error}. Correct the YAML, or use a text file with "
      "one name per line."
    ) from error
  content = found if isinstance(found, dict) else {}
  names: Any = content.get("data")
  if not _all(names, str):
    raise ValueError(
      f"{path} must hold the image names as a list under 'data'."
    )
  if "targets" not in content:
    return dict.fromkeys(names)
  targets = content["targets"]
  if not _all(targets, int) or len(targets) != len(names):
    raise ValueError(
      f"{path} must hold as many integers under 'targets' as it has names "
      f"under 'data', {len(names)}; leave out 'targets' if there are no class "
      "ids."
    )
  return dict(zip(names, targets, strict=True))


def _all(values: Any, kind: type) -> bool:
  return isinstance(values, list) and all(type(v) is kind for v in values)
