"""DER++: see parts/distilling.py for the loss.

Buzzega et al., "Dark Experience", NeurIPS 2020, in the GS-LoRA code's version.
"""

import dataclasses

from methods.parts import distilling


@dataclasses.dataclass(frozen=True, kw_only=True)
class DERPlus(distilling.Distilling):
  """DER and the cross entropy of a further batch of images to retain (DER++).

  Attributes:
    retain: r, weight of that cross entropy.
  """

  distill: float = 0.005
  retain: float = 0.005

  unsigned = ("distill", "retain")
  streams = {**distilling.Distilling.streams, "again": ("retain",)}

  def distance(self, student, teacher):
    """The squared distance of the features, summed over the batch."""
    return distilling.squared_gap(student, teacher)

  def further(self, params, memory, batch, *, kept, rng):
    """The weighted cross entropy of the further batch."""
    del kept
    outputs = self.outputs(params, memory, batch["again"], rng)
    return self.fit(outputs, batch["again"], self.retain)
