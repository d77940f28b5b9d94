"""Reference points that train the plain model: sequential and joint."""

import dataclasses

import jax.numpy as jnp

from libml import losses
from methods import base
from methods import masking


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(base.Method):
  """Trains on each stage's data, one after the other.

  Which parameters move is the optimizer's matter: all of them, or only the
  head over frozen features.

  Attributes:
    mask_classes: Whether training masks the classes of other tasks, which
      spares their columns.
  """

  mask_classes: bool = False

  def init_memory(self, params, trainable):
    """Holds the classes that the loss may see."""
    del params, trainable
    return {"classes": jnp.ones(self.num_classes, bool)}

  def before_stage(self, state, stage, data):
    """Writes down the stage's classes."""
    del data
    if not self.mask_classes:
      return state
    classes = masking.allowed(stage.classes["learn"], self.num_classes)
    return state.replace(memory={**state.memory, "classes": classes})

  def loss(self, params, memory, batch, rng):
    """Cross entropy."""
    batch = batch["train"]
    outputs = self.apply(params, batch, rng)
    logits = losses.mask_logits(outputs["logits"], memory["classes"])
    return self.problem.loss({**outputs, "logits": logits}, batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joint(Finetune):
  """Trains on everything seen so far at each stage: the usual upper bound."""

  def roles(self, stage):
    """All data up to this stage make an epoch."""
    return ("seen",)
