"""The data set type: a training and a test split of labelled images."""

import dataclasses
import functools
import os
import pathlib
import zlib
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

ENCODINGS = ("array", "bytes", "path")


def generator(*seeds: int) -> np.random.Generator:
  """Returns a random generator that depends on these integers (>= 0) alone."""
  return np.random.Generator(np.random.Philox(np.random.SeedSequence(seeds)))


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """Labelled images in a fixed order. Compared by identity.

  Attributes:
    images: uint8 [N, H, W, 1 or 3]; or [N] contents of image files (bytes);
      or [N] paths of image files.
    labels: int32 [N], class ids of the source.
    encoding: Which of the three `images` holds: "array", "bytes", "path".
    hashed: Of paths: files whose content the fingerprint covers, evenly spaced;
      None: all. It covers the names and sizes of all files.

  Raises:
    ValueError: An array has another shape or type, or the lengths differ.
  """

  images: np.ndarray
  labels: np.ndarray
  encoding: str = "array"
  hashed: int | None = 256

  def __post_init__(self):
    """Checks the fields."""
    if self.encoding not in ENCODINGS:
      raise ValueError(
        f"Unknown encoding {self.encoding!r}. Known: {', '.join(ENCODINGS)}."
      )
    shape, dtype = self.images.shape, self.images.dtype
    if self.encoding == "array":
      if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
        raise ValueError(
          f"Images are {dtype} {list(shape)}; they must be uint8 "
          "[N, H, W, 1 or 3] with grey levels 0 to 255. Convert them first."
        )
    elif len(shape) != 1:
      raise ValueError(
        f"Encoded images have shape {list(shape)}; give one entry per image, "
        "[N]."
      )
    if self.labels.shape != shape[:1] or self.labels.dtype != np.int32:
      raise ValueError(
        f"Labels are {self.labels.dtype} {list(self.labels.shape)}; "
        f"{shape[0]} images need int32 [{shape[0]}]."
      )

  def __len__(self) -> int:
    """Number of images."""
    return len(self.labels)

  def rows(self, rows: np.ndarray) -> "Split":
    """Returns the split of these rows, int [n], in the given order."""
    return dataclasses.replace(
      self, images=self.images[rows], labels=self.labels[rows]
    )

  def select(self, classes: Sequence[int], count: int) -> "Split":
    """Returns the images of some classes, whose ids become 0, 1, ...

    Args:
      classes: Ids of the classes, in the order of their new ids.
      count: Number of classes before the selection.

    Raises:
      ValueError: An id does not exist or occurs twice.
    """
    wrong = [label for label in classes if not 0 <= label < count]
    if wrong or len(set(classes)) < len(classes):
      raise ValueError(
        f"Classes {list(classes)} must be different ids in 0 to {count - 1}."
      )
    ids = np.full(count, -1, np.int32)
    ids[list(classes)] = np.arange(len(classes))
    rows = np.flatnonzero(ids[self.labels] >= 0)
    return dataclasses.replace(
      self, images=self.images[rows], labels=ids[self.labels[rows]]
    )

  @functools.cached_property
  def fingerprint(self) -> dict[str, int]:
    """Number of images, and CRC-32 of labels and images.

    Of paths these are the CRC-32 of all names and sizes, and of the content of
    `hashed` files.
    """
    sums = {"examples": len(self), "labels_crc32": _crc32(self.labels)}
    if self.encoding == "array":
      sums["images_crc32"] = _crc32(self.images)
    elif self.encoding == "bytes":
      sums["images_crc32"] = _crc32_of_all(self.images)
    else:
      names = "\n".join("/".join(str(p).split("/")[-2:]) for p in self.images)
      sums["names_crc32"] = zlib.crc32(names.encode())
      sizes = [os.stat(path).st_size for path in self.images]
      sums["sizes_crc32"] = _crc32(np.array(sizes, np.int64))
      count = min(len(self), self.hashed or len(self))
      chosen = np.linspace(0, len(self) - 1, count).astype(int)
      for path in self.images[chosen]:
        content = pathlib.Path(path).read_bytes()
        sums["content_crc32"] = zlib.crc32(
          content, sums.get("content_crc32", 0)
        )
    return sums


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """A data set: a training and a test split over the same classes.

  It may also have test images of other classes that a pretrained model knows,
  to measure whether a change to the model affects them.

  Attributes:
    name: Key of DATASETS, the builder's name, or its name in a collection.
    class_names: One name per class; the position is the class id.
    splits: {"train": Split, "test": Split}.
    origin: Where the images come from, for the results.
    others: Test images of other classes, which have no training images; None:
      none.
    other_names: One name per other class; the class at position i has the id
      num_classes + i.

  Raises:
    ValueError: `splits` has other keys, a label is out of range, a class has no
      training image, an other class has no test image, or both have a name in
      common.
  """

  name: str
  class_names: tuple[str, ...]
  splits: Mapping[str, Split]
  origin: str
  others: Split | None = None
  other_names: tuple[str, ...] = ()

  def __post_init__(self):
    """Checks the fields."""
    if set(self.splits) != {"train", "test"}:
      raise ValueError(
        f"Source {self.name!r} has the splits {sorted(self.splits)}; it "
        "needs 'train' and 'test' and nothing else."
      )
    for name in (*self.class_names, *self.other_names):
      if not name.isprintable():
        raise ValueError(
          f"Source {self.name!r}: the class name {name!r} holds characters "
          "that a terminal obeys and does not show; rename it."
        )
    for key, split in self.splits.items():
      self._check_labels(key, split, self.class_names, 0)
    self._check_filled("training", self.splits["train"], self.class_names, 0)
    both = sorted(set(self.class_names) & set(self.other_names))
    if both:
      raise ValueError(
        f"Source {self.name!r} has {', '.join(map(repr, both))} among its "
        "classes and among the other ones; remove them from the others."
      )
    if (self.others is None) != (not self.other_names):
      raise ValueError(
        f"Source {self.name!r} has {len(self.other_names)} other_names and "
        f"{'no' if self.others is None else 'some'} images of others; give "
        "both or none."
      )
    if self.others is not None:
      first = self.num_classes
      self._check_labels("others", self.others, self.other_names, first)
      self._check_filled("test", self.others, self.other_names, first)

  def _check_labels(
    self, key: str, split: Split, names: tuple[str, ...], first: int
  ) -> None:
    end = first + len(names)
    wrong = (split.labels < first) | (split.labels >= end)
    if wrong.any():
      row = int(np.argmax(wrong))
      raise ValueError(
        f"Source {self.name!r}, split {key!r}, row {row}: label "
        f"{split.labels[row]} is outside {first} to {end - 1}; correct it, or "
        "name all classes."
      )

  def _check_filled(
    self, kind: str, split: Split, names: tuple[str, ...], first: int
  ) -> None:
    counts = np.bincount(split.labels - first, minlength=len(names))
    empty = [names[i] for i in np.flatnonzero(counts == 0)]
    if empty:
      more = f" and {len(empty) - 10:,} more" if len(empty) > 10 else ""
      raise ValueError(
        f"Source {self.name!r} has an empty class: no {kind} image of "
        f"{', '.join(map(repr, empty[:10]))}{more}. Add images or drop the "
        "class."
      )

  @property
  def num_classes(self) -> int:
    """The number of classes."""
    return len(self.class_names)

  def select(self, classes: Sequence[int]) -> "Source":
    """Returns the images of some classes, whose ids become 0, 1, ...

    Images of other classes (`others`) are dropped.

    Args:
      classes: Ids of the classes, in the order of their new ids.

    Raises:
      ValueError: An id does not exist or occurs twice.
    """
    return dataclasses.replace(
      self,
      class_names=tuple(self.class_names[label] for label in classes),
      splits={
        key: split.select(classes, self.num_classes)
        for key, split in self.splits.items()
      },
      others=None,
      other_names=(),
    )

  def ids(self, names: Sequence[int | str], what: str) -> tuple[int, ...]:
    """Returns the ids of classes given by id or name.

    Args:
      names: Ids, names, or both.
      what: Name of the list for errors, such as "dataset.forget".

    Raises:
      ValueError: `names` is not a list, or a class does not exist or occurs
        twice.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
      raise ValueError(
        f"{what} is {names!r}; it must be a list of class ids or names, such "
        "as (8, 9)."
      )
    by_name = {name: i for i, name in enumerate(self.class_names)}
    found = []
    for name in names:
      label = by_name.get(name) if isinstance(name, str) else name
      known = isinstance(label, int) and 0 <= label < self.num_classes
      if not known:
        some = ", ".join(self.class_names[:5])
        raise ValueError(
          f"Class {name!r} of {what} does not exist in {self.name!r}; classes "
          f"are 0 to {self.num_classes - 1}, or names such as {some}."
        )
      found.append(label)
    if len(set(found)) < len(found):
      raise ValueError(
        f"{what} names a class twice (ids {found}); name each class once."
      )
    return tuple(found)

  @functools.cached_property
  def description(self) -> dict[str, Any]:
    """Name, origin, number of classes, and fingerprint of each split."""
    found: dict[str, Any] = {
      "name": self.name,
      "origin": self.origin,
      "classes": self.num_classes,
      "splits": {key: split.fingerprint for key, split in self.splits.items()},
    }
    if self.others is not None:
      names = "\n".join(self.other_names).encode()
      found["others"] = {
        "classes": len(self.other_names),
        "classes_crc32": zlib.crc32(names),
        **self.others.fingerprint,
      }
    return found


def stratify(
  labels: np.ndarray, fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Draws the same fraction of each class at random.

  Args:
    labels: int [N]; each class that occurs needs at least two rows.
    fraction: Fraction to draw, above 0 and below 1. At least one row of each
      class is drawn, and at least one is left.
    rng: Random generator.

  Returns:
    Rows left and rows drawn, int64 and ascending.

  Raises:
    ValueError: The fraction is out of range, or a class has a single row.
  """
  if not 0 < fraction < 1:
    raise ValueError(
      f"The fraction {fraction} (dataset.test_fraction or holdout) must be "
      "above 0 and below 1."
    )
  drawn = np.zeros(len(labels), bool)
  for label in np.unique(labels):
    rows = np.flatnonzero(labels == label)
    if len(rows) < 2:
      raise ValueError(
        f"Class {label} has a single image and cannot be divided; add images "
        "or drop the class."
      )
    count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
    drawn[rng.permutation(rows)[:count]] = True
  return np.flatnonzero(~drawn), np.flatnonzero(drawn)


def _crc32_of_all(contents: Iterable[bytes]) -> int:
  """Returns the CRC-32 of contents one after the other."""
  return functools.reduce(
    lambda crc, content: zlib.crc32(content, crc), contents, 0
  )


def _crc32(array: np.ndarray) -> int:
  return zlib.crc32(np.ascontiguousarray(array).data)
