"""Learning without Forgetting: see parts/distilling.py for the loss.

Li and Hoiem, ECCV 2016, in the GS-LoRA code's version.
"""

import dataclasses

import jax.numpy as jnp

from libml.problems import losses
from methods.parts import distilling


@dataclasses.dataclass(frozen=True, kw_only=True)
class LwF(distilling.Distilling):
  """Learning without Forgetting.

  Attributes:
    temperature: T.
    retain: r, weight of the cross entropy of images to retain.
    dead: Whether the distillation term is 0. It is in the GS-LoRA code, which
      takes the logarithm of negative numbers and replaces the NaN by 0.
  """

  distill: float = 0.5
  temperature: float = 2.0
  retain: float = 10.0
  dead: bool = False

  positive = ("temperature",)
  unsigned = ("distill", "retain")

  def distance(self, student, teacher):
    """The divergence of the student's predictions from the teacher's."""
    if self.dead:
      return jnp.zeros(())
    return losses.distillation(
      student["logits"], teacher["logits"], self.temperature
    )

  def further(self, params, memory, batch, *, kept, rng):
    """The weighted cross entropy of the images to retain."""
    del params, memory, rng
    return self.fit(kept, batch["retain"], self.retain)
