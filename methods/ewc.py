"""Elastic weight consolidation: see parts/penalties.py for the loss.

Kirkpatrick et al., PNAS 2017, in the GS-LoRA code's version.
"""

import dataclasses

import jax
import jax.numpy as jnp

from methods.parts import penalties


@dataclasses.dataclass(frozen=True, kw_only=True)
class EWC(penalties.Weighing):
  """Weights are as important as a proxy of their Fisher information says.

  A batch of B images adds B g^2, g the gradient of the batch's mean loss.
  """

  strength: float = 10.0

  def weigh(self, params, memory, batch):
    """Returns B g^2 for each weight."""
    size = jnp.sum(batch["mask"])
    rows = jnp.where(batch["mask"], 1 / size, 0.0)
    names = memory["weights"]
    grads = self.gradient(params, memory, batch, names=names, weights=rows)
    return jax.tree.map(lambda g: size * g**2, grads)
