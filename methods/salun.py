"""SalUn: random labels, learned with the most salient weights only.

Fan et al., "SalUn", ICLR 2024; the loss is in parts/wrong_labels.py.
"""

import dataclasses

from methods.parts import wrong_labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class SalUn(wrong_labels.WrongLabels):
  """Learns random labels with half of the weights, the most salient ones."""

  saliency: float | None = 0.5
