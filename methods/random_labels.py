"""Random labels for the images to forget; the loss is in parts/wrong_labels.py.

Golatkar et al., "Eternal Sunshine of the Spotless Net", CVPR 2020.
"""

import dataclasses

from methods.parts import wrong_labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomLabels(wrong_labels.WrongLabels):
  """Learns random labels with all trained weights."""
