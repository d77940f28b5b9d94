"""A teacher: the model as it was before the first request."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from libml import trees
from libml.problems import losses
from libml.train.method import Outputs
from methods.parts import unlearning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taught(unlearning.Unlearning):
  """Keeps the given weights as a teacher, for all requests.

  Of weights that are not trained there is no second copy. The teacher's
  features of a request's images are made once, where images are not augmented;
  else in each step.
  """

  constant = r"teacher/.*"
  prepared = ("retain",)

  def init_memory(self, params, trainable):
    """Holds the teacher, too."""
    leaves = unlearning.trained(params, trainable)
    return {
      **super().init_memory(params, trainable),
      "teacher": {name: jnp.array(leaf) for name, leaf in leaves.items()},
    }

  def teacher(self, params: Any, memory: Any) -> Any:
    """Returns the teacher's parameters."""
    return trees.update(params, memory["teacher"])

  def prepare(self, params, memory, batch):
    """Returns the teacher's features [B, D]."""
    outputs = self.apply(self.teacher(params, memory), batch)
    return {"teacher": outputs["features"]}

  def taught(self, params: Any, memory: Any, batch: Any) -> Outputs:
    """Returns the teacher's features [B, D] and logits [B, C] of a batch.

    A margin is put on the batch's labels, as in the student's logits.
    """
    features = batch.get("teacher")
    if features is None:
      features = self.prepare(params, memory, batch)["teacher"]
    outputs = self.model.apply(
      {"params": self.teacher(params, memory)},
      features,
      batch["label"],
      method="classify",
    )
    logits = losses.mask_logits(outputs["logits"], memory["known"])
    return jax.lax.stop_gradient({"features": features, "logits": logits})
