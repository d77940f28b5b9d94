"""SCRUB and SCRUB-S: away from a teacher to forget, towards it to retain.

Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023; SCRUB-S
adds the GS-LoRA code's smoothing D. With s the student, t the teacher and
KD(s, t) = T^2 KL(t || s) at temperature T:

  max step, images to forget:  -KD(s, t) + D
  min step, images to retain:  gamma CE + alpha KD(s, t) + D
  D = smoothing sum over tensors of ||theta - average||

where `average` are averaged weights, and query, key and value count as one
tensor, as in the GS-LoRA code. By default an epoch has ten rounds: the first
five pass over the images to forget and then over those to retain, the others
over those to retain only.
"""

import dataclasses

import jax.numpy as jnp

from libml import trees
from libml.problems import losses
from libml.train.method import Round
from methods.parts import teaching


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scrubbing(teaching.Taught):
  """Alternates passes of max steps and passes of min steps.

  Attributes:
    retain: gamma, weight of the cross entropy.
    distill: alpha, weight of the distance to the teacher on images to retain.
    temperature: T.
    smoothing: Weight of D; 0: SCRUB without smoothing.
    average_decay: Decay of the averaged weights, which are updated after each
      epoch; the first update copies the student's weights.
    max_rounds: Number of an epoch's rounds that start with a pass of max steps.
    min_rounds: Number of an epoch's rounds; each has a pass of min steps.
  """

  retain: float = 0.99
  distill: float = 0.001
  temperature: float = 2.0
  smoothing: float
  average_decay: float = 0.9
  max_rounds: int = 5
  min_rounds: int = 10

  positive = ("temperature",)
  unsigned = ("retain", "distill", "smoothing")
  prepared = ("forget", "retain")
  epoch = ("forget", "retain")
  smoke = {"max_rounds": 1, "min_rounds": 2}

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.max_rounds <= self.min_rounds or not self.min_rounds:
      raise ValueError(
        f"method.max_rounds={self.max_rounds} must be 0 to min_rounds="
        f"{self.min_rounds}, and min_rounds 1 or more."
      )
    if not 0 <= self.average_decay < 1:
      raise ValueError(
        f"method.average_decay={self.average_decay} must be at least 0 and "
        "below 1."
      )

  def init_memory(self, params, trainable):
    """Holds the averaged weights, if there is smoothing."""
    memory = super().init_memory(params, trainable)
    if self.smoothing:
      copies = {name: jnp.array(x) for name, x in memory["teacher"].items()}
      memory.update(average=copies, averaged=jnp.zeros((), jnp.int32))
    return memory

  def steps_per_epoch(self, stage, data):
    """Returns the steps of all rounds of an epoch."""
    del stage
    forget, retain = (data.steps_per_epoch((r,)) for r in ("forget", "retain"))
    return self.max_rounds * forget + self.min_rounds * retain

  def rounds(self, stage, data):
    """Returns the passes of all epochs."""
    del stage
    kinds = {"max": (self.max_loss, "forget"), "min": (self.min_loss, "retain")}
    passes = {
      name: Round(
        name,
        loss,
        {role: (role,)},
        data.steps_per_epoch((role,)),
        continues=True,
      )
      for name, (loss, role) in kinds.items()
    }
    epoch = [passes["max"], passes["min"]] * self.max_rounds
    epoch += [passes["min"]] * (self.min_rounds - self.max_rounds)
    if self.smoothing:

      def finish(state):
        average = data.compiled("average", self.average)
        parts = {key: state.memory[key] for key in ("average", "averaged")}
        moved = average(parts, state.params)
        return state.replace(memory={**state.memory, **moved})

      epoch[-1] = dataclasses.replace(epoch[-1], finish=finish)
    return tuple(epoch) * self.epochs

  def average(self, memory, params):
    """Returns the averaged weights after an epoch, and how often they moved."""
    flat, first = trees.flatten(params), memory["averaged"] == 0
    decay = jnp.where(first, 0.0, self.average_decay)
    average = {
      name: (decay * old + (1 - decay) * flat[name]).astype(old.dtype)
      for name, old in memory["average"].items()
    }
    return {"average": average, "averaged": memory["averaged"] + 1}

  def max_loss(self, params, memory, batch, rng):
    """The loss of a max step: away from the teacher."""
    rows = batch["forget"]
    outputs = self.outputs(params, memory, rows, rng)
    distance = self.distance(params, memory, rows, outputs)
    smooth = self.smooth(params, memory)
    return smooth - distance, {"forget_distill": distance}

  def min_loss(self, params, memory, batch, rng):
    """The loss of a min step: towards the labels and the teacher."""
    rows = batch["retain"]
    outputs = self.outputs(params, memory, rows, rng)
    retain, parts = self.problem.loss(outputs, rows)
    distance = self.distance(params, memory, rows, outputs)
    total = self.retain * retain + self.distill * distance
    return total + self.smooth(params, memory), {
      "retain": retain,
      "retain_distill": distance,
      "train_accuracy_retain": parts["train_accuracy"],
    }

  def distance(self, params, memory, batch, outputs):
    """Returns KD(s, t) of a batch, float32[]."""
    teacher = self.taught(params, memory, batch)
    return losses.distillation(
      outputs["logits"], teacher["logits"], self.temperature
    )

  def smooth(self, params, memory):
    """Returns D, float32[]; 0 without smoothing."""
    if not self.smoothing:
      return jnp.zeros(())
    flat, tensors = trees.flatten(params), {}
    readers = self.model.attention_readers
    for name, old in memory["average"].items():
      layer, _, leaf = name.rpartition("/")
      joined = layer in readers
      tensor = (layer.rpartition("/")[0] if joined else layer, joined, leaf)
      tensors.setdefault(tensor, []).append(losses.norm(flat[name] - old))
    norms = [losses.norm(jnp.stack(parts)) for parts in tensors.values()]
    return self.smoothing * sum(norms)
