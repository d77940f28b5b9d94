"""What an example is, and how far an output is from it."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import ClassVar
from typing import Protocol

import jax
import numpy as np

from libml.problems import classification


class Problem(Protocol):
  """A kind of task: loss, measures of a batch, metrics of a whole split.

  Attributes:
    name: By which methods say that they serve it.
    metric: Key of `summarize` that scenarios sum up and tables show.
    targets: Names of the entries of a batch that hold the ground truth; audits
      remove them before the model runs.
    hidden: Those of them that evaluation removes, too.
  """

  name: ClassVar[str]
  metric: ClassVar[str]
  targets: ClassVar[tuple[str, ...]]
  hidden: ClassVar[tuple[str, ...]]

  def loss(
    self, outputs: Mapping[str, Any], batch: Mapping[str, Any]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the batch's mean loss, and named scalars for the log."""
    ...

  def constants(
    self, classes: Sequence[int], num_classes: int
  ) -> dict[str, np.ndarray]:
    """Returns what joins all batches of a test set for `measure`, as a mask.

    Args:
      classes: Ids that a prediction may name.
      num_classes: Columns of the head.
    """
    ...

  def measure(
    self, outputs: Mapping[str, Any], batch: Mapping[str, Any]
  ) -> Any:
    """Returns arrays of fixed shape; rows where batch["mask"] is False."""
    ...

  def summarize(self, measures: Sequence[Any]) -> dict[str, Any]:
    """Returns the metrics of a split from the measures of its batches.

    A curve is a mapping of two names to as many numbers: x and y.
    """
    ...


PROBLEMS = {"classification": classification.Classification}

# Metric -> its name in summaries, where that is shorter.
_SHORT = {classification.Classification.metric: "acc"}


def short(metric: str) -> str:
  """Returns the name of a problem's metric in summaries, such as "acc"."""
  return _SHORT.get(metric, metric)
