"""SCRUB-S, with smoothing, as the GS-LoRA code has it."""

import dataclasses

from methods.parts import scrubbing


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScrubS(scrubbing.Scrubbing):
  """SCRUB with smoothing; faces' value for four requests."""

  smoothing: float = 0.1
