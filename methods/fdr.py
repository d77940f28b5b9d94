"""Function distance regularization: see parts/distilling.py for the loss.

Benjamin et al., "Measuring and regularizing networks in function space", ICLR
2019, in the GS-LoRA code's version.
"""

import dataclasses

import jax.numpy as jnp

from libml.problems import losses
from methods.parts import distilling


@dataclasses.dataclass(frozen=True, kw_only=True)
class FDR(distilling.Distilling):
  """Keeps the logits of images to retain near the teacher's."""

  distill: float = 50.0

  def distance(self, student, teacher):
    """The mean over images of the Euclidean distance of the logits."""
    gap = student["logits"] - teacher["logits"]
    return jnp.mean(losses.norm(gap, axis=-1))
