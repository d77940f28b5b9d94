"""Selections of images from splits, with the labels that a model sees."""

import dataclasses
import functools
from collections.abc import Collection
from collections.abc import Mapping

import numpy as np

from libml.datasets import source


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
  """Rows of one split.

  Attributes:
    split: The split that holds the images.
    rows: int64 [n], positions in the split.
    labels: int32 [n], labels as the model sees them.
  """

  split: source.Split
  rows: np.ndarray
  labels: np.ndarray

  def take(self, keep: np.ndarray) -> "Piece":
    """Returns the entries that a mask or an index array [n] names."""
    return Piece(self.split, self.rows[keep], self.labels[keep])


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
  """Pieces of one or several splits, in order; images are not copied.

  Attributes:
    pieces: Pieces with at least one row; rows keep the order of their split.
  """

  pieces: tuple[Piece, ...]

  @classmethod
  def of(
    cls,
    split: source.Split,
    classes: Collection[int] | None = None,
    label_map: Mapping[int, int] | None = None,
  ) -> "Subset":
    """Returns the images of some classes.

    Args:
      split: The split that holds the images.
      classes: Class ids of the source; None: all.
      label_map: From class ids of the source to labels that the model sees;
        None: both are equal.

    Raises:
      ValueError: A class is not in the label map.
    """
    rows = np.arange(len(split), dtype=np.int64)
    subset = cls._nonempty([Piece(split, rows, split.labels)])
    if classes is not None:
      subset = subset.select(classes)
    if label_map is None:
      return subset
    unmapped = sorted(set(subset.labels.tolist()) - set(label_map))
    if unmapped:
      raise ValueError(
        f"Classes {unmapped} have no label in the label map, which has "
        f"{sorted(label_map)}; add them, or select other classes."
      )
    return cls(
      tuple(
        dataclasses.replace(
          piece,
          labels=np.array([label_map[i] for i in piece.labels], np.int32),
        )
        for piece in subset.pieces
      )
    )

  def __len__(self) -> int:
    """Number of images."""
    return sum(len(piece.rows) for piece in self.pieces)

  def __add__(self, other: "Subset") -> "Subset":
    """This subset, then the other one."""
    if not isinstance(other, Subset):
      return NotImplemented
    return Subset(self.pieces + other.pieces)

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """Labels as the model sees them, int32 [len(self)]."""
    return np.concatenate(
      [np.zeros(0, np.int32), *(piece.labels for piece in self.pieces)]
    )

  def select(self, classes: Collection[int]) -> "Subset":
    """Returns the images whose label (as the model sees it) is one of these."""
    wanted = np.fromiter(classes, np.int32)
    return self._nonempty(
      [piece.take(np.isin(piece.labels, wanted)) for piece in self.pieces]
    )

  def without(self, other: "Subset") -> "Subset":
    """Returns the images that are not in another subset."""

    def keep(piece: Piece) -> Piece:
      rows = [p.rows for p in other.pieces if p.split is piece.split]
      known = np.concatenate([np.zeros(0, np.int64), *rows])
      return piece.take(~np.isin(piece.rows, known))

    return self._nonempty([keep(piece) for piece in self.pieces])

  def take_per_class(self, count: int, seed: int) -> "Subset":
    """Returns `count` random images of each class, in their old order.

    Args:
      count: Images per class.
      seed: Decides which images are drawn.

    Raises:
      ValueError: A class has fewer images, or `count` is below 1.
    """
    if count < 1:
      raise ValueError(f"Cannot take {count} images per class; take 1 or more.")
    keep = np.zeros(len(self), bool)
    for label in np.unique(self.labels):
      rows = np.flatnonzero(self.labels == label)
      if len(rows) < count:
        raise ValueError(
          f"Class {label} has {len(rows)} images, fewer than the {count} "
          f"asked for; ask for {len(rows)} or less."
        )
      # Seed by class, so that a draw does not depend on which other classes
      # are present.
      rng = source.generator(seed, int(label))
      keep[rng.permutation(rows)[:count]] = True
    return self._keep(keep)

  def take(self, count: int, seed: int) -> "Subset":
    """Returns `count` random images of any class, in their old order.

    Args:
      count: Number of images, 1 to len(self).
      seed: Decides which images are drawn.

    Raises:
      ValueError: `count` is out of range.
    """
    if not 1 <= count <= len(self):
      raise ValueError(
        f"Cannot take {count} of {len(self)} images; take 1 to {len(self)}."
      )
    keep = np.zeros(len(self), bool)
    keep[source.generator(seed).permutation(len(self))[:count]] = True
    return self._keep(keep)

  def _keep(self, keep: np.ndarray) -> "Subset":
    """Returns the images for which a mask, bool [len(self)], is True."""
    ends = np.cumsum([len(piece.rows) for piece in self.pieces])
    return self._nonempty(
      [
        piece.take(part)
        for piece, part in zip(
          self.pieces, np.split(keep, ends[:-1]), strict=True
        )
      ]
    )

  @classmethod
  def _nonempty(cls, pieces: list[Piece]) -> "Subset":
    return cls(tuple(piece for piece in pieces if len(piece.rows)))
