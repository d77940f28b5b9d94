"""Memory aware synapses: see parts/penalties.py for the loss.

Aljundi et al., ECCV 2018, in the GS-LoRA code's version.
"""

import dataclasses

import jax
import jax.numpy as jnp

from libml import trees
from methods.parts import penalties


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAS(penalties.Weighing):
  """Weights are as important as the logits are sensitive to them.

  A batch adds |g|, g the gradient of its mean squared logit.
  """

  strength: float = 0.005

  def weigh(self, params, memory, batch):
    """Returns |g| for each weight."""
    rows = jnp.where(batch["mask"], 1 / jnp.sum(batch["mask"]), 0.0)
    known = memory["known"][None]

    def mean_square(leaves):
      outputs = self.apply(trees.update(params, leaves), batch)
      squares = jnp.where(known, outputs["logits"] ** 2, 0.0)
      return jnp.sum(rows * (jnp.sum(squares, axis=-1) / jnp.sum(known)))

    flat = trees.flatten(params)
    leaves = {name: flat[name] for name in memory["weights"]}
    return jax.tree.map(jnp.abs, jax.grad(mean_square)(leaves))
