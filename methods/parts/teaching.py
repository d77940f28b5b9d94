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
  """Keeps the weights from before the first request as teacher of all requests.

  The teacher shares all weights that are not trained. Its features of a
  request's images are computed once, or in every step if images are augmented.
  """

  constant = r"teacher/.*"
  prepared = ("retain",)

  def init_memory(self, params, trainable):
    """Holds the teacher's copy of the trained weights as well."""
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

    A head with a margin puts it on the batch's labels, as for the student.
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
