"""Compares a data set that users build themselves with the published copy."""

import dataclasses
import logging
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from libml.datasets import source

_LOG = logging.getLogger("palimpsest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
  """Class names and image counts of the copy used for published results.

  Attributes:
    classes: Names of all classes; the position is the class id. (): any.
    train_total: Number of training images; None: any.
    test_total: Number of test images; None: any.
    test_counts: Pairs (class ids, total number of test images of these
      classes), as known from the denominators of published accuracies.
  """

  classes: Sequence[str] = ()
  train_total: int | None = None
  test_total: int | None = None
  test_counts: Sequence[tuple[Sequence[int], int]] = ()

  def check(self, found: source.Source) -> None:
    """Logs a warning if counts differ; raises an error if classes differ.

    Args:
      found: The user's copy.

    Raises:
      ValueError: The classes or their ids differ, so that class lists and
        weights would silently refer to other classes.
    """
    if self.classes:
      _check_names(found, tuple(self.classes))
    differences = list(self._differences(found))
    if differences:
      _LOG.warning(
        "%s has the expected classes but not the images of the published "
        "copy: %s. Compare its results with runs on the same copy; published "
        "results may differ slightly.",
        found.origin,
        "; ".join(differences),
      )

  def _differences(self, found: source.Source) -> Iterator[str]:
    for key, total in (("train", self.train_total), ("test", self.test_total)):
      count = len(found.splits[key])
      if total is not None and count != total:
        yield f"{count} {key} images instead of {total}"
    labels = found.splits["test"].labels
    counts = np.bincount(labels, minlength=found.num_classes)
    for classes, total in self.test_counts:
      there = [label for label in classes if label < found.num_classes]
      count = int(counts[there].sum())
      if count != total:
        yield (
          f"{count} test images of classes {_some(classes, 5)} instead of "
          f"{total}"
        )


def _check_names(found: source.Source, names: tuple[str, ...]) -> None:
  if found.class_names == names:
    return
  missing = sorted(set(names) - set(found.class_names))
  extra = sorted(set(found.class_names) - set(names))
  if missing or extra:
    raise ValueError(
      f"The classes of {found.origin} are not the expected {len(names)}: "
      f"missing {_some(missing)}; not expected {_some(extra)}. Add, remove or "
      "rename their folders, or set dataset.expected.classes=() to use your "
      "own classes."
    )
  moved = [n for n, m in zip(found.class_names, names, strict=True) if n != m]
  raise ValueError(
    f"The classes of {found.origin} have other ids than expected: "
    f"{_some(moved)}. Leave out the 'targets' in train_list and test_list, "
    "which set the ids."
  )


def _some(items: Iterable[object], most: int = 10) -> str:
  names = [str(item) for item in items]
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return (", ".join(names[:most]) or "none") + more
