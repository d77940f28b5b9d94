"""DualPrompt: prefixes that all tasks share, and prefixes of each task.

Wang et al., "DualPrompt: Complementary Prompting for Rehearsal-free Continual
Learning", ECCV 2022; the options and the loss are in parts/prompting.py.
"""

import dataclasses

from methods.parts import prompting


@dataclasses.dataclass(frozen=True, kw_only=True)
class DualPrompt(prompting.Prompting):
  """Prefixes shared by all tasks (G) in early layers, one a task (E) in later.

  The code is that of L2P with other defaults. Training uses the task's own
  prefix; a test image gets the one whose key is nearest.
  """

  e_layers: tuple[int, ...] = (2, 3, 4)
  e_prefix: bool = True
  length: int = 5
  top_k: int = 1
  g_layers: tuple[int, ...] = (0, 1)
  vote_group: int = 24
  prompt_mask: bool = True
  transfer_prompts: bool = True
