"""GS-LoRA: forgetting by low-rank edits of few blocks.

Zhao et al., "Continual Forgetting for Pre-trained Vision Models", CVPR 2024;
the loss is in parts/group_sparse.py.
"""

import dataclasses

from methods.parts import group_sparse


@dataclasses.dataclass(frozen=True, kw_only=True)
class GsLora(group_sparse.GroupSparse):
  """GS-LoRA, without prototypes."""
