"""What a data set that everybody makes for himself ought to hold."""

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
  """Names and counts of the copy with which published figures were measured.

  Attributes:
    classes: Names of all classes; the position is the class id. (): any.
    train_total: Number of training images; None: any.
    test_total: Number of test images; None: any.
    test_counts: Pairs (class ids, test images of these classes together): the
      counts that can be read off the denominators of published accuracies.
  """

  classes: Sequence[str] = ()
  train_total: int | None = None
  test_total: int | None = None
  test_counts: Sequence[tuple[Sequence[int], int]] = ()

  def check(self, found: source.Source) -> None:
    """Warns of other counts, once, and refuses other classes.

    Args:
      found: The copy at hand.

    Raises:
      ValueError: Other classes, or the same under other ids: class lists and
        weights would then mean other classes, silently.
    """
    if self.classes:
      _check_names(found, tuple(self.classes))
    differences = list(self._differences(found))
    if differences:
      _LOG.warning(
        "%s has the right classes but is not the copy that was published: %s. "
        "Its figures cannot be compared with published ones to the last "
        "digit, only with runs on the same copy.",
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
      f"missing {_some(missing)}; not expected {_some(extra)}. Add or remove "
      "their folders, rename them as in the class map, or go on with your "
      "own classes: dataset.expected.classes=()."
    )
  moved = [n for n, m in zip(found.class_names, names, strict=True) if n != m]
  raise ValueError(
    f"The classes of {found.origin} have other ids than expected: "
    f"{_some(moved)}. Leave out lists that number the classes."
  )


def _some(items: Iterable[object], most: int = 10) -> str:
  names = [str(item) for item in items]
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return (", ".join(names[:most]) or "none") + more
