"""Function distance regularization: see parts/distilling.py for the loss.

Benjamin et al., "Measuring and regularizing networks in function space", ICLR
2019; as the GS-LoRA code has it.
"""

import dataclasses

import jax.numpy as jnp

from libml.problems import losses
from methods.parts import distilling


@dataclasses.dataclass(frozen=True, kw_only=True)
class FDR(distilling.Distilling):
  """Holds the logits by a distance that is not squared."""

  distill: float = 50.0

  def distance(self, student, teacher):
    """The mean distance of the logits."""
    gap = student["logits"] - teacher["logits"]
    return jnp.mean(losses.norm(gap, axis=-1))
