"""Random labels for what goes: see parts/wrong_labels.py for the loss.

Golatkar et al., "Eternal Sunshine of the Spotless Net", CVPR 2020.
"""

import dataclasses

from methods.parts import wrong_labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomLabels(wrong_labels.WrongLabels):
  """Random labels on all trained weights."""
