"""Training and test images named one by one, in text files."""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Lists:
  """Two text files, one image name a line.

  Empty lines and lines that start with "#" are passed over. Names are compared
  by their last two components (n01443537/art_0.jpg), or by the last one where
  the images have no more.

  Attributes:
    train: Path of the list of training images.
    test: Path of the list of test images.
  """

  train: str
  test: str

  def __str__(self) -> str:
    """The names of the files."""
    return f"{pathlib.Path(self.train).name}, {pathlib.Path(self.test).name}"

  def divide(self, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns which images the lists name.

    Args:
      names: [N], names of all images.

    Returns:
      {"train": rows, "test": rows}, int64 and ascending: images keep the order
      they have in `names`, and one that no list names is in neither.

    Raises:
      FileNotFoundError: A list that does not exist.
      ValueError: An empty list, a listed name that no image has or several
        have, or one in both lists.
    """
    depth = min(2, max((name.count("/") + 1 for name in names), default=1))
    keys = [_key(name, depth) for name in names]
    count = collections.Counter(keys)
    listed = {}
    for split, path in (("train", self.train), ("test", self.test)):
      listed[split] = _read(path, depth)
      wrong = [key for key in listed[split] if count[key] != 1]
      if wrong:
        raise ValueError(
          f"{len(wrong)} of the {len(listed[split])} images that {path} names "
          f"do not exist, or exist twice: {_first(wrong)}. Correct the list, "
          f"or let it choose from more than these {len(keys)} images: "
          f"{_first(keys)}."
        )
    twice = sorted(set(listed["train"]) & set(listed["test"]))
    if twice:
      raise ValueError(
        f"{self.train} and {self.test} both name {len(twice)} images: "
        f"{_first(twice)}. Remove them from one of the two."
      )
    return {
      split: np.flatnonzero([key in wanted for key in keys])
      for split, wanted in ((k, set(v)) for k, v in listed.items())
    }


def given(train_list: str | None, test_list: str | None) -> Lists | None:
  """Returns the lists that options name, if they do.

  Raises:
    ValueError: One without the other.
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


def _read(path: str, depth: int) -> list[str]:
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(
      f"No list {path}. It is a text file with one image name a line."
    )
  lines = pathlib.Path(path).read_text().splitlines()
  names = [line.strip() for line in lines]
  names = [_key(n, depth) for n in names if n and not n.startswith("#")]
  if not names:
    raise ValueError(
      f"The list {path} names no image; write one image name a line."
    )
  return names
