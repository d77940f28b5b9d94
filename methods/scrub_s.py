"""SCRUB-S: SCRUB with smoothing, from the GS-LoRA code."""

import dataclasses

from methods.parts import scrubbing


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScrubS(scrubbing.Scrubbing):
  """SCRUB with smoothing; the default is that of four requests on faces."""

  smoothing: float = 0.1
