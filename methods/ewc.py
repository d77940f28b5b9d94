"""Elastic weight consolidation: see parts/penalties.py for the loss.

Kirkpatrick et al., PNAS 2017; as the GS-LoRA code has it.
"""

import dataclasses

import jax
import jax.numpy as jnp

from methods.parts import penalties


@dataclasses.dataclass(frozen=True, kw_only=True)
class EWC(penalties.Weighing):
  """Weighs by a proxy of the Fisher information.

  A batch of B images adds B times the square of the mean loss's gradient.
  """

  strength: float = 10.0

  def weigh(self, params, memory, batch):
    """The batch's gradient squared, times its size."""
    size = jnp.sum(batch["mask"])
    rows = jnp.where(batch["mask"], 1 / size, 0.0)
    names = memory["weights"]
    grads = self.gradient(params, memory, batch, names=names, weights=rows)
    return jax.tree.map(lambda g: size * g**2, grads)
