"""What an example is, and how far an output is from it."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Protocol

import jax

from libml.problems import classification


class Problem(Protocol):
  """A kind of task: loss, measures of a batch, figures of a whole split."""

  def loss(
    self, outputs: Mapping[str, Any], batch: Mapping[str, Any]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the batch's mean loss, and named scalars for the log."""
    ...

  def measure(
    self, outputs: Mapping[str, Any], batch: Mapping[str, Any]
  ) -> Any:
    """Returns arrays of fixed shape; rows where batch["mask"] is False."""
    ...

  def report(self, measures: Sequence[Any]) -> dict[str, Any]:
    """Returns the figures of a split from the measures of its batches.

    A curve is a mapping of two names to as many numbers: x and y.
    """
    ...


PROBLEMS = {"classification": classification.Classification}
