"""L2P: a pool of prompts in front of a frozen transformer.

Wang et al., "Learning to Prompt for Continual Learning", CVPR 2022; the options
and the loss are in parts/prompting.py.
"""

import dataclasses

from methods.parts import prompting


@dataclasses.dataclass(frozen=True, kw_only=True)
class L2P(prompting.Prompting):
  """A pool of prompts; each image gets those whose keys are nearest."""

  e_layers: tuple[int, ...] = (0,)
  e_prefix: bool = False
  length: int = 10
  top_k: int = 4
  g_layers: tuple[int, ...] = ()
  vote_group: int = 16
  prompt_mask: bool = False
  transfer_prompts: bool = False
