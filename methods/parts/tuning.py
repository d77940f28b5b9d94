"""Training of the model, without prompts or penalties, on a stage's data."""

import dataclasses

from libml.problems import losses
from libml.train import rehearsal
from libml.train.method import Method
from methods.parts import class_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning(Method):
  """Trains the model with cross entropy.

  The optimizer decides which parameters are trained: all of them, or only the
  head on frozen features.

  Attributes:
    mask_classes: Whether training masks the classes of other tasks, so that
      their columns get no gradient.
  """

  mask_classes: bool = False

  rehearses = True

  def check(self, scenario):
    """Raises ValueError for tasks of one class that masks all others."""
    if self.mask_classes and not self.rehearsal.per_class:
      class_heads.check_masked(scenario.stages)

  def init_memory(self, params, trainable):
    """Holds the classes that the loss may see."""
    del params, trainable
    return rehearsal.initial_memory(self.num_classes)

  def before_stage(self, state, stage, data):
    """Stores the stage's classes in the memory."""
    del data
    memory = rehearsal.stage_memory(
      state.memory, stage, masked=self.mask_classes
    )
    return state.replace(memory=memory)

  def loss(self, params, memory, batch, rng):
    """Cross entropy over the classes that are not masked."""
    rows = rehearsal.join(batch, memory, self.rehearsal.mask)
    outputs = self.apply(params, rows.batch, rng)
    logits = losses.mask_logits(outputs["logits"], rows.allowed)
    return self.problem.loss({**outputs, "logits": logits}, rows.batch)
