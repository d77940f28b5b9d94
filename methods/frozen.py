"""Nothing changes: measures the given weights in any scenario."""

import dataclasses

from methods import base


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen(base.Method):
  """Trains nothing; every stage measures the first model."""

  goals = ("learn", "forget")

  def rounds(self, stage, data):
    """Has none."""
    del stage, data
    return ()
