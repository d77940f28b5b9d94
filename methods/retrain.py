"""Training afresh on what stays."""

import dataclasses

import jax

from libml import trees
from methods.parts import retaining

# Folded into the last stage's key; no step has this number.
_FRESH = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrain(retaining.Retaining):
  """Draws a new network at each request: what never saw a class.

  It sees the images that the scenario leaves. With all of them
  (scenario.ratio=1.0) it is the yardstick of exact unlearning; with a sample
  it is none, and no upper bound either.
  """

  def init_memory(self, params, trainable):
    """Checks that all weights are trained."""
    frozen = [n for n, on in trees.flatten(trainable).items() if not on]
    if frozen:
      raise ValueError(
        f"Retrain draws all weights anew, and the optimizer freezes "
        f"{frozen[0]!r} and {len(frozen) - 1} more; give each of its groups "
        "settings."
      )
    return super().init_memory(params, trainable)

  def before_stage(self, state, stage, data):
    """Draws all parameters."""

    def draw(rng):
      return self.model.init(rng, self.model.example_input())["params"]

    rng = jax.random.fold_in(state.rng, _FRESH)
    params = data.compiled("draw", draw)(rng)
    return super().before_stage(state.replace(params=params), stage, data)
