"""Base of the methods that forget by changing the network's own weights."""

import dataclasses
import math
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from libml import trees
from libml.optim import transforms
from libml.pipeline.stage_data import StageData
from libml.problems import losses
from libml.scenarios import Stage
from libml.train.method import Method
from libml.train.method import Outputs
from libml.train.method import Round
from methods.parts import pairing
from methods.parts import relabel
from methods.parts import saliency


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unlearning(Method):
  """Forgets classes; the optimizer decides which weights are trained.

  Attributes:
    saliency: Share of the trained weights that may change in a request: those
      with the largest gradient of the loss on the images to forget (SalUn).
      None: all trained weights.
  """

  saliency: float | None = None

  goals = ("forget",)
  mixes = False
  # Names of options that must be above 0, and of options that may be 0, too.
  positive: ClassVar[tuple[str, ...]] = ()
  unsigned: ClassVar[tuple[str, ...]] = ()
  # Roles whose images make an epoch; streams of a step, as in Round.streams.
  epoch: ClassVar[tuple[str, ...]] = ("retain",)
  streams: ClassVar[Mapping[str, tuple[str, ...]]] = {
    "forget": ("forget",),
    "retain": ("retain",),
  }

  def __post_init__(self):
    if self.saliency is not None and not 0 < self.saliency <= 1:
      raise ValueError(
        f"method.saliency={self.saliency} must be above 0 and at most 1, or "
        "None for all weights."
      )
    for name in (*self.positive, *self.unsigned):
      value, zero = getattr(self, name), name in self.unsigned
      if not (0 < value < math.inf or (zero and value == 0)):
        raise ValueError(
          f"method.{name}={value} must be a finite number, "
          f"{'0 or more' if zero else 'above 0'}."
        )

  @property
  def transforms(self):
    """With saliency, restricts updates to the salient weights."""
    return () if self.saliency is None else (transforms.keep_salient(),)

  def init_memory(self, params, trainable):
    """Holds the stage's classes and, with saliency, which weights may change.

    Raises:
      ValueError: There is saliency, and the optimizer trains no parameter.
    """
    memory: dict[str, Any] = {
      "known": jnp.ones(self.num_classes, bool),
      "forget": jnp.zeros(self.num_classes, bool),
      "retain": jnp.ones(self.num_classes, bool),
      "old": jnp.zeros(self.num_classes, bool),
    }
    if self.saliency is not None:
      leaves = trained(params, trainable)
      if not leaves:
        raise ValueError(
          f"method.saliency={self.saliency} selects among the trained weights, "
          "but the optimizer trains none; set it to None, or give a parameter "
          "group of the optimizer settings."
        )
      memory["salient"] = {
        name: jnp.ones(leaf.shape, bool) for name, leaf in leaves.items()
      }
    return memory

  def before_stage(self, state, stage, data):
    """Stores the stage's classes; with saliency, finds the salient weights."""
    classes = {
      role: jnp.asarray(
        np.isin(np.arange(self.num_classes), stage.classes.get(role, ()))
      )
      for role in ("known", "forget", "retain", "old")
    }
    state = state.replace(memory={**state.memory, **classes})
    if self.saliency is None:
      return state
    grads = data.accumulate("salience", self.salience, state, "forget")
    largest = data.compiled(
      "largest", lambda leaves: saliency.largest(leaves, self.saliency)
    )
    return state.replace(memory={**state.memory, "salient": largest(grads)})

  def roles(self, stage):
    """Returns the roles in `epoch`."""
    del stage
    return self.epoch

  def rounds(self, stage: Stage, data: StageData) -> tuple[Round, ...]:
    """Returns one round with all epochs."""
    steps = self.epochs * self.steps_per_epoch(stage, data)
    return (Round("train", self.loss, self.streams, steps),)

  def salience(self, params, memory, batch):
    """Returns the gradient of the loss, summed over the images of a batch."""
    weights = jnp.where(batch["mask"], 1.0, 0.0)
    names = memory["salient"]
    return self.gradient(params, memory, batch, names=names, weights=weights)

  def gradient(
    self,
    params: Any,
    memory: Any,
    batch: Mapping[str, Any],
    *,
    names: Iterable[str],
    weights: jax.Array,
  ) -> dict[str, jax.Array]:
    """Returns the gradient of a weighted sum of losses, by parameter name.

    Args:
      params: All parameters.
      memory: Of the method.
      batch: One batch.
      names: Parameters with respect to which the sum is differentiated.
      weights: [B], one for each image's loss: the head's own, or cross entropy.
    """

    def total(leaves):
      outputs = self.outputs(trees.update(params, leaves), memory, batch)
      rows = losses.cross_entropy(outputs["logits"], batch["label"])
      return jnp.sum(outputs.get("loss", rows) * weights)

    flat = trees.flatten(params)
    return jax.grad(total)({name: flat[name] for name in names})

  def extra_args(self, memory):
    """The mask of the weights that may change."""
    return {k: v for k, v in memory.items() if k == "salient"}

  def outputs(
    self,
    params: Any,
    memory: Any,
    batch: Mapping[str, Any],
    rng: jax.Array | None = None,
  ) -> Outputs:
    """Returns the model's outputs; logits of unknown classes are masked."""
    outputs = self.apply(params, batch, rng)
    logits = losses.mask_logits(outputs["logits"], memory["known"])
    return {**outputs, "logits": logits}

  def both(
    self,
    params: Any,
    memory: Any,
    batches: Sequence[Mapping[str, Any]],
    rng: jax.Array,
  ) -> tuple[Outputs, ...]:
    """Returns the outputs of each of several batches, from one forward pass."""
    inputs = ({k: b[k] for k in ("image", "label")} for b in batches)
    outputs = self.outputs(params, memory, pairing.join(*inputs), rng)
    return pairing.part(outputs, *(len(b["label"]) for b in batches))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relabelling(Unlearning):
  """Forgets with wrong labels, drawn anew in every step.

  Attributes:
    relabel: Key of relabel.RELABELS: "kept" draws a class to retain; "shifted"
      draws, as the released GS-LoRA code does, one of the ids 0 to P - 1 for P
      classes to forget.
  """

  relabel: str = "kept"

  def __post_init__(self):
    super().__post_init__()
    if self.relabel not in relabel.RELABELS:
      raise ValueError(
        f"method.relabel={self.relabel!r} must be one of "
        f"{sorted(relabel.RELABELS)}."
      )

  def wrong(
    self, memory: Any, batch: Mapping[str, Any], rng: jax.Array
  ) -> dict[str, Any]:
    """Returns the batch with wrong labels for its images to forget."""
    label, masks = batch["label"], (memory["forget"], memory["retain"])
    drawn = relabel.RELABELS[self.relabel](rng, label, *masks)
    return {**batch, "label": jnp.where(masks[0][label], drawn, label)}


def trained(params: Any, trainable: Any) -> dict[str, Any]:
  """Returns the parameters that the optimizer trains, by name.

  Args:
    params: All parameters.
    trainable: Booleans of the same structure.
  """
  flags = trees.flatten(trainable)
  return {n: leaf for n, leaf in trees.flatten(params).items() if flags[n]}
