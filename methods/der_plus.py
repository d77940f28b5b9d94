"""DER++: see parts/distilling.py for the loss.

Buzzega et al., "Dark Experience", NeurIPS 2020; as the GS-LoRA code has it.
"""

import dataclasses

from methods.parts import distilling


@dataclasses.dataclass(frozen=True, kw_only=True)
class DERPlus(distilling.Distilling):
  """DER with the cross entropy of another batch to retain (DER++).

  Attributes:
    retain: r, its weight.
  """

  distill: float = 0.005
  retain: float = 0.005

  unsigned = ("distill", "retain")
  streams = {**distilling.Distilling.streams, "again": ("retain",)}

  def distance(self, student, teacher):
    """The squared distance of the features, summed over the batch."""
    return distilling.squared_gap(student, teacher)

  def further(self, params, memory, batch, *, kept, rng):
    """Cross entropy to retain."""
    del kept
    outputs = self.outputs(params, memory, batch["again"], rng)
    return self.fit(outputs, batch["again"], self.retain)
