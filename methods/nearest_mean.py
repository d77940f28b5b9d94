"""Nearest class mean on frozen features: nothing is trained.

SimpleCIL: Zhou et al., "Revisiting Class-Incremental Learning with Pre-Trained
Models: Generalizability and Adaptivity are All You Need", IJCV 2024.
"""

import dataclasses

import jax
import jax.numpy as jnp

from libml.problems import prototypes
from libml.train.method import Method
from methods.parts import class_means


@dataclasses.dataclass(frozen=True, kw_only=True)
class NearestMean(Method):
  """Predicts the class whose mean feature has the largest cosine."""

  def init_memory(self, params, trainable):
    """Holds sums [C, D] and counts [C] of the features of each class."""
    del params, trainable
    return {
      "sums": jnp.zeros((self.num_classes, self.model.width)),
      "counts": jnp.zeros(self.num_classes),
    }

  def rounds(self, stage, data):
    """Trains nothing."""
    del stage, data
    return ()

  def after_stage(self, state, stage, data):
    """Adds the features of the stage's images to the sums."""
    added = class_means.sums(self, state, data, stage.goal)
    return state.replace(memory=jax.tree.map(jnp.add, state.memory, added))

  def precompute(self, params, memory, batch):
    """Returns the features [B, D]; the frozen model never changes them."""
    del memory
    return {"features": self.apply(params, batch)["features"]}

  def predict(self, params, memory, batch):
    """Logits are cosines to the means, -2 for classes without images."""
    del params
    sums, counts = memory["sums"], memory["counts"]
    logits = prototypes.cosine_logits(
      batch["features"], prototypes.means(sums, counts), counts > 0
    )
    return {"": {"logits": logits}}
