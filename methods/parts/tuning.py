"""Training of the plain model on whatever data a stage has."""

import dataclasses

from libml.problems import losses
from libml.train import rehearsal
from libml.train.method import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning(Method):
  """Trains the plain model.

  Which parameters move is the optimizer's matter: all of them, or only the
  head over frozen features.

  Attributes:
    mask_classes: Whether training masks the classes of other tasks, which
      spares their columns.
  """

  mask_classes: bool = False

  rehearses = True

  def init_memory(self, params, trainable):
    """Holds the classes that the loss may see."""
    del params, trainable
    return rehearsal.initial_memory(self.num_classes)

  def before_stage(self, state, stage, data):
    """Writes down the stage's classes."""
    del data
    memory = rehearsal.stage_memory(
      state.memory, stage, masked=self.mask_classes
    )
    return state.replace(memory=memory)

  def loss(self, params, memory, batch, rng):
    """Cross entropy."""
    rows = rehearsal.join(batch, memory, self.rehearsal.mask)
    outputs = self.apply(params, rows.batch, rng)
    logits = losses.mask_logits(outputs["logits"], rows.allowed)
    return self.problem.loss({**outputs, "logits": logits}, rows.batch)
