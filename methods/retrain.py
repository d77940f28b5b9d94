"""Training on what stays: afresh, or from the given weights."""

import dataclasses

import jax
import jax.numpy as jnp

from libml import trees
from methods.parts import unlearning

# Folded into the last stage's key; no step has this number.
_FRESH = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneRetain(unlearning.Unlearning):
  """Goes on with the images to retain, and hopes that the rest is forgotten.

  Warnecke et al., "Machine Unlearning of Features and Labels", NDSS 2023, has
  it as a baseline.
  """

  streams = {"retain": ("retain",)}

  def loss(self, params, memory, batch, rng):
    """Cross entropy to retain."""
    outputs = self.outputs(params, memory, batch["retain"], rng)
    return self.problem.loss(outputs, batch["retain"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrain(FinetuneRetain):
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
    size = self.model.image_size

    def draw(rng):
      inputs = {"image": jnp.zeros((1, size, size, 3))}
      return self.model.init(rng, inputs)["params"]

    rng = jax.random.fold_in(state.rng, _FRESH)
    params = data.compiled("draw", draw)(rng)
    return super().before_stage(state.replace(params=params), stage, data)
