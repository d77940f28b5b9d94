"""Retraining: a new network, trained on the images to retain."""

import dataclasses

import jax

from libml import trees
from methods.parts import retaining

# Folded into the previous stage's key, which `before_stage` sees; no step of
# that stage has this number.
_FRESH = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrain(retaining.Retaining):
  """Draws a new network at each request; it never sees the forgotten classes.

  With all images to retain (scenario.ratio=1.0) it is the reference for exact
  unlearning. With a sample it is not, nor is it an upper bound.
  """

  def init_memory(self, params, trainable):
    """Checks that all weights are trained.

    Raises:
      ValueError: The optimizer freezes a parameter.
    """
    frozen = [n for n, on in trees.flatten(trainable).items() if not on]
    if frozen:
      raise ValueError(
        "Retrain draws and trains all weights, but the optimizer freezes "
        f"{frozen[0]!r} and {len(frozen) - 1} more parameters; give every "
        "parameter group of the optimizer settings."
      )
    return super().init_memory(params, trainable)

  def before_stage(self, state, stage, data):
    """Draws all parameters."""

    def draw(rng):
      return self.model.init(rng, self.model.example_input())["params"]

    rng = jax.random.fold_in(state.rng, _FRESH)
    params = data.compiled("draw", draw)(rng)
    return super().before_stage(state.replace(params=params), stage, data)
