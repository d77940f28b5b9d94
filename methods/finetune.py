"""Sequential fine-tuning: the plain model, one stage after the other."""

import dataclasses

from methods.parts import tuning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(tuning.Tuning):
  """Trains on each stage's data, one after the other."""
