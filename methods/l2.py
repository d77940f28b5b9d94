"""L2: penalizes changes of the weights; see parts/penalties.py for the loss."""

import dataclasses

import jax.numpy as jnp

from methods.parts import penalties


@dataclasses.dataclass(frozen=True, kw_only=True)
class L2(penalties.Penalty):
  """All weights have importance 1."""

  strength: float = 0.1

  def no_weights(self, leaves):
    """Returns one scalar zero for each tensor: all its weights count alike."""
    return {name: jnp.zeros(()) for name in leaves}

  def importance(self, state, stage, data):
    """Returns importance 1 for all weights, without looking at images."""
    del stage, data
    return {name: 1.0 for name in state.memory["weights"]}, 1
