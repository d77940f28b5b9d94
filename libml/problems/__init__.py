"""Problems: how a model's outputs are compared with the ground truth."""

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
    name: Name of the problem; `Method.problems` lists those that it supports.
    metric: Key of `summarize` that scenarios summarize and tables show.
    targets: Names of the entries of a batch that hold the ground truth; audits
      remove them before the model runs.
    hidden: The targets that evaluation removes, too, before the model runs.
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
    """Returns arrays that join each batch of a test set, for `measure`.

    Args:
      classes: Ids of the classes that a prediction may name.
      num_classes: Number of columns of the head.
    """
    ...

  def measure(
    self, outputs: Mapping[str, Any], batch: Mapping[str, Any]
  ) -> Any:
    """Returns the measures of a batch, arrays of fixed shape.

    Args:
      outputs: What the model returns for the batch.
      batch: The batch with targets and `constants`. Rows where batch["mask"] is
        False are padding and must not count.
    """
    ...

  def summarize(self, measures: Sequence[Any]) -> dict[str, Any]:
    """Returns the metrics of a split from the measures of its batches.

    A metric is a number, or a curve: a mapping of two names to lists of equal
    length, x first and y second.
    """
    ...


PROBLEMS = {"classification": classification.Classification}

# Metric -> its name in summaries, where that is shorter.
_SHORT = {classification.Classification.metric: "acc"}


def short(metric: str) -> str:
  """Returns the name of a problem's metric in summaries, such as "acc"."""
  return _SHORT.get(metric, metric)
