"""Joint training: the plain model on everything seen so far."""

import dataclasses

from methods.parts import tuning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joint(tuning.Tuning):
  """Trains on everything seen so far at each stage: the usual upper bound."""

  def __post_init__(self):
    if self.mask_classes:
      raise ValueError(
        "Joint training sees all classes so far; set method.mask_classes=False."
      )

  def roles(self, stage):
    """All data up to this stage make an epoch."""
    return ("seen",)
