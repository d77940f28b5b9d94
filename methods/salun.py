"""SalUn: random labels on the weights that matter.

Fan et al., "SalUn", ICLR 2024; the loss is in parts/wrong_labels.py.
"""

import dataclasses

from methods.parts import wrong_labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class SalUn(wrong_labels.WrongLabels):
  """Random labels on half of the weights."""

  saliency: float | None = 0.5
