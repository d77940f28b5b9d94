"""SCRUB: see parts/scrubbing.py for the passes and their losses.

Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023.
"""

import dataclasses

from methods.parts import scrubbing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scrub(scrubbing.Scrubbing):
  """SCRUB, without smoothing."""

  smoothing: float = 0.0
