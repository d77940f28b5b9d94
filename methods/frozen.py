"""Nothing changes: measures the given weights in any scenario."""

import dataclasses

from libml.train.method import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen(Method):
  """Trains nothing; every stage measures the first model."""

  goals = ("learn", "forget")

  def rounds(self, stage, data):
    """Has none."""
    del stage, data
    return ()
