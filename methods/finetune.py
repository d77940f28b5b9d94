"""Sequential fine-tuning of the model, without any protection of old tasks."""

import dataclasses

from methods.parts import tuning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(tuning.Tuning):
  """Trains on each stage's own data, one stage after the other."""
