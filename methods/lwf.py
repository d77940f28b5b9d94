"""Learning without forgetting: see parts/distilling.py for the loss.

Li and Hoiem, "Learning without Forgetting", ECCV 2016; as the GS-LoRA code has
it.
"""

import dataclasses

import jax.numpy as jnp

from libml.problems import losses
from methods.parts import distilling


@dataclasses.dataclass(frozen=True, kw_only=True)
class LwF(distilling.Distilling):
  """Learning without forgetting.

  Attributes:
    temperature: T.
    retain: r, weight of the cross entropy to retain.
    dead: Whether the distance is 0, as in the released code, where it is a
      logarithm of a negative number.
  """

  distill: float = 0.5
  temperature: float = 2.0
  retain: float = 10.0
  dead: bool = False

  positive = ("temperature",)
  unsigned = ("distill", "retain")

  def distance(self, student, teacher):
    """The divergence of the answers."""
    if self.dead:
      return jnp.zeros(())
    return losses.distillation(
      student["logits"], teacher["logits"], self.temperature
    )

  def further(self, params, memory, batch, *, kept, rng):
    """Cross entropy to retain."""
    del params, memory, rng
    return self.fit(kept, batch["retain"], self.retain)
