"""Joint training: trains on the data of all stages so far."""

import dataclasses

from methods.parts import tuning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joint(tuning.Tuning):
  """Trains on the data of all stages so far: the usual upper bound."""

  def __post_init__(self):
    if self.mask_classes:
      raise ValueError(
        "method.mask_classes=True masks the classes of earlier stages, which "
        "joint training trains on; set method.mask_classes=False."
      )

  def roles(self, stage):
    """An epoch is a pass over the data of all stages up to this one."""
    return ("seen",)
