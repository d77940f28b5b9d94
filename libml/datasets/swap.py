"""Data of a swap: classes to learn, to forget and to retain.

Xing et al., "Knowledge Swapping via Learning and Unlearning", ICML 2025.
"""

import dataclasses
import functools
import os
import re
import zlib
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from libml import registry
from libml.datasets import class_map
from libml.datasets import files
from libml.datasets import source

# A class folder of the reference's layout: "17_n01531178".
_LABELLED = re.compile(r"(\d+)_.+")
SETS = ("learn", "forget", "retain")


@dataclasses.dataclass(frozen=True, eq=False)
class Swap:
  """Three sets of classes, and the classes that the head already knows.

  Attributes:
    name: Key of DATASETS.
    known: Class names of the head's columns, in order, before the swap.
    old: Images of known classes, of all or of some.
    learn: Images of the new classes, which get the next columns in their order.
    forget: Ids in `old` of the classes to forget.
    retain: Ids in `old` of the classes to retain.

  Raises:
    ValueError: A set is empty, a class is in two sets, a new class has the name
      of a known one, or a class of `old` is not known.
  """

  name: str
  known: tuple[str, ...]
  old: source.Source
  learn: source.Source
  forget: tuple[int, ...]
  retain: tuple[int, ...]

  def __post_init__(self):
    """Checks the names."""
    names = {key: set(self.names[key]) for key in SETS}
    for key, there in names.items():
      if not there:
        raise ValueError(
          f"{self.name!r} has no class to {key}; name one or more (for "
          "swap_folders: a folder of images each)."
        )
    both = names["forget"] & names["retain"]
    if both:
      raise ValueError(
        f"{self.name!r} has {_some(both)} among the classes to forget and "
        "among those to retain; take them out of one list."
      )
    exist = names["learn"] & set(self.known)
    if exist:
      raise ValueError(
        f"{self.name!r} has {_some(exist)} among the classes to learn, and the "
        "head knows a class of that name; rename or remove the new ones."
      )
    unknown = set(self.old.class_names) - set(self.known)
    if unknown:
      raise ValueError(
        f"{self.name!r} has {_some(unknown)} among its old classes, and the "
        f"head does not know them; rename or remove them. Its "
        f"{len(self.known)} classes are {', '.join(self.known[:5])}, ..."
      )

  @functools.cached_property
  def names(self) -> dict[str, tuple[str, ...]]:
    """Names of each set's classes."""
    old = {
      key: tuple(self.old.class_names[c] for c in getattr(self, key))
      for key in ("forget", "retain")
    }
    return {"learn": self.learn.class_names, **old}

  @property
  def unseen(self) -> tuple[str, ...]:
    """Names of the known classes that are neither forgotten nor retained."""
    there = {*self.names["forget"], *self.names["retain"]}
    return tuple(name for name in self.known if name not in there)

  @functools.cached_property
  def description(self) -> dict[str, Any]:
    """Name, known classes, and the descriptions of `old` and `learn`."""
    return {
      "name": self.name,
      "known": len(self.known),
      "known_crc32": zlib.crc32("\n".join(self.known).encode()),
      "old": self.old.description,
      "learn": self.learn.description,
    }


def folders(
  *,
  learn: str | os.PathLike[str],
  forget: str | os.PathLike[str],
  retain: str | os.PathLike[str],
  names: str | os.PathLike[str] | None = None,
  known: int | None = None,
  test_fraction: float | None = None,
  seed: int = 0,
  verify: bool = True,
) -> Swap:
  """Returns three folders of images, each as `files.folder` reads it.

  Each class to forget or to retain has a column in the head. Its folder's name
  begins with the number of the column, as in the reference ("17_n01531178"), or
  is a class name in the file `names`. New classes get the next columns, in the
  order of their folders.

  Args:
    learn: Folder of the classes to learn.
    forget: Folder of the classes to forget.
    retain: Folder of the classes to retain.
    names: File with the head's class names, one per line in order, as in
      `class_map.names`; None: folder names begin with the column.
    known: Number of columns of the head; None: the number of class names, or
      the largest column + 1.
    test_fraction: As in `files.folder`.
    seed: As in `files.folder`.
    verify: As in `files.folder`.

  Raises:
    FileNotFoundError: A folder or file does not exist.
    ValueError: A folder's name has no column, two folders have the same column,
      a column does not exist, or what `files.folder` and `Swap` raise.
  """
  options = {"test_fraction": test_fraction, "seed": seed, "verify": verify}
  roots = {"learn": learn, "forget": forget, "retain": retain}
  parts = {
    key: files.folder(root=root, **options) for key, root in roots.items()
  }
  old = _together(parts["forget"], parts["retain"])
  title = (
    _labelled(old.class_names, known)
    if names is None
    else class_map.names(names)
  )
  if known not in (None, len(title)):
    raise ValueError(
      f"dataset.known={known}, and {names} names {len(title)} classes; leave "
      "one of the two options out."
    )
  return Swap(
    name="swap_folders",
    known=title,
    old=old,
    learn=parts["learn"],
    forget=old.ids(parts["forget"].class_names, "dataset.forget"),
    retain=old.ids(parts["retain"].class_names, "dataset.retain"),
  )


def classes(
  table: Mapping[str, Callable[..., Any]],
  /,
  *,
  known: Mapping[str, Any],
  forget: Sequence[int | str],
  learn: Sequence[int | str] | None = None,
  retain: Sequence[int | str] | None = None,
  new: Mapping[str, Any] | None = None,
) -> Swap:
  """Returns classes of one data set, or of an old and a new data set.

  Args:
    table: DATASETS.
    known: {"name": key of DATASETS, ...options}, the data set that the head
      knows. Its classes, without those to learn, are the head's columns.
    forget: Ids or names of classes of `known` to forget.
    learn: Ids or names of the classes to learn; None: all of `new`.
    retain: Ids or names of classes of `known` to retain; None: all others.
    new: The data set of the classes to learn, in the form of `known`; None:
      they are classes of `known`.

  Raises:
    ValueError: There is no class to learn, a class is in two lists or does not
      exist, or what the data sets and `Swap` raise.
  """
  old = _single(table, known, "known")
  fresh = old if new is None else _single(table, new, "new")
  if learn is None and new is None:
    raise ValueError(
      "dataset.learn names no class, and there is no data set dataset.new; "
      "give one of them."
    )
  wanted = tuple(range(fresh.num_classes)) if learn is None else learn
  new_ids = fresh.ids(wanted, "dataset.learn")
  columns = [
    c for c in range(old.num_classes) if new is not None or c not in new_ids
  ]
  ids = {"forget": old.ids(forget, "dataset.forget")}
  left = tuple(c for c in columns if c not in ids["forget"])
  ids["retain"] = left
  if retain is not None:
    ids["retain"] = old.ids(retain, "dataset.retain")
  for key, chosen in ids.items():
    both = set(chosen).difference(columns)
    if both:
      raise ValueError(
        f"Classes {sorted(both)} are both in dataset.learn and in dataset."
        f"{key}; take them out of one list."
      )
  # Pretraining leaves out the classes to learn, too, so that it and the swap
  # hold out the same images for tuning.
  known_classes = old.select(columns)
  return Swap(
    name="swap_classes",
    known=known_classes.class_names,
    old=known_classes,
    learn=fresh.select(new_ids),
    **{key: tuple(map(columns.index, chosen)) for key, chosen in ids.items()},
  )


def _together(forget: source.Source, retain: source.Source) -> source.Source:
  """Returns the classes of two folders as one data set."""
  names = tuple(sorted({*forget.class_names, *retain.class_names}))

  def joined(key: str) -> source.Split:
    parts = [part.splits[key] for part in (forget, retain)]
    labels = [
      np.array([names.index(n) for n in part.class_names])[split.labels]
      for part, split in zip((forget, retain), parts, strict=True)
    ]
    return source.Split(
      np.concatenate([split.images for split in parts]),
      np.concatenate(labels).astype(np.int32),
      encoding="path",
    )

  return source.Source(
    name="folder",
    class_names=names,
    splits={key: joined(key) for key in ("train", "test")},
    origin=f"to forget {forget.origin}; to retain {retain.origin}",
  )


def _single(
  table: Mapping[str, Callable[..., Any]], options: Mapping[str, Any], key: str
) -> source.Source:
  if "name" not in options:
    raise ValueError(
      f"dataset.{key} has no data set; give {key}={{'name': ...}}."
    )
  found = registry.build(table, "dataset", **options)
  if not isinstance(found, source.Source):
    raise ValueError(
      f"dataset.{key} {found.name!r} is several data sets; name one."
    )
  return found


def _labelled(folders: Sequence[str], known: int | None) -> tuple[str, ...]:
  """Returns the names of the head's columns, from those of folders."""
  columns: dict[int, str] = {}
  for name in folders:
    match = _LABELLED.fullmatch(name)
    if match is None:
      raise ValueError(
        f"The name of the folder {name!r} has no column of the head; rename it "
        "to column and class, such as 17_jay, or set dataset.names to a file "
        "with the names of the head's classes."
      )
    column = int(match[1])
    if column in columns:
      raise ValueError(
        f"The folders {columns[column]!r} and {name!r} both have column "
        f"{column}; change the number of one."
      )
    columns[column] = name
  count = 1 + max(columns, default=-1) if known is None else known
  outside = [name for column, name in columns.items() if column >= count]
  if outside:
    raise ValueError(
      f"The folder {outside[0]!r} has a column outside the head's, 0 to "
      f"{count - 1}. Correct it, or set dataset.known to the number of columns."
    )
  return tuple(columns.get(i, f"class {i}") for i in range(count))


def _some(names: set[str]) -> str:
  first = sorted(names)
  more = f" and {len(first) - 5} more" if len(first) > 5 else ""
  return ", ".join(map(repr, first[:5])) + more
