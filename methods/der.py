"""Dark experience replay of features: see parts/distilling.py for the loss.

Buzzega et al., "Dark Experience", NeurIPS 2020, in the GS-LoRA code's version.
"""

import dataclasses

from methods.parts import distilling


@dataclasses.dataclass(frozen=True, kw_only=True)
class DER(distilling.Distilling):
  """Keeps the features of images to retain near the teacher's."""

  distill: float = 0.01

  def distance(self, student, teacher):
    """The squared distance of the features, summed over the batch."""
    return distilling.squared_gap(student, teacher)
