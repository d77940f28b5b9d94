"""Frozen: measures the given weights in any scenario, without training."""

import dataclasses

from libml.train.method import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen(Method):
  """Trains nothing; every stage measures the given weights."""

  goals = ("learn", "forget")

  def rounds(self, stage, data):
    """Trains nothing."""
    del stage, data
    return ()
