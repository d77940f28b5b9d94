"""LIRF: recoverable forgetting in the lower half of the network.

Ye et al., "Learning with Recoverable Forgetting", ECCV 2022, in the GS-LoRA
code's version for transformers. The network is cut in the middle. The student s
trains the lower half; the upper half keeps the given weights. x_f are images to
forget with wrong labels y', x_r images to retain, t is the given network, AT
the distance of the attention maps of s and t at the cut, d the network with the
deposit as lower half; KL is taken on x_f over the columns of some classes. With
the weights of the released code:

  (1 - a) CE(s(x_f), y') - 300 AT + 10 a T^2 KL(t || s; classes to retain)
  + 0.05 [a T^2 KL(t || d; classes to forget) + (1 - a) CE(d(x_f), y')]
  + 5 CE(s(x_r))
"""

import dataclasses

import jax
import jax.numpy as jnp

from libml import trees
from libml.problems import losses
from methods.parts import pairing
from methods.parts import teaching
from methods.parts import unlearning
from models import captures


@dataclasses.dataclass(frozen=True, kw_only=True)
class LIRF(teaching.Taught, unlearning.Relabelling):
  """Trains the lower half; the optimizer freezes the rest.

  Attributes:
    mixed: a, the weight of distillation against wrong labels, 0 to 1.
    temperature: T.
    attention: Weight of AT, which training increases.
    distill: Weight of the distillation of the classes to retain.
    retain: Weight of the cross entropy of images to retain.
    deposit: Weight of the deposit's loss; 0: there is no deposit. The deposit
      is a second lower half, which learns to keep what the student forgets and
      has no influence on the student. The released code has 0.05 and never
      trains it.
    by_position: Whether distillation takes the class ids 0 to P - 1 for the P
      classes to forget, whichever those are, as the released code does.
  """

  mixed: float = 0.1
  temperature: float = 10.0
  attention: float = 300.0
  distill: float = 10.0
  retain: float = 5.0
  deposit: float = 0.0
  by_position: bool = False

  positive = ("temperature",)
  unsigned = ("attention", "distill", "retain", "deposit")
  prepared = ("forget",)
  epoch = ("forget",)
  private = ("deposit",)

  @classmethod
  def fewest_blocks(cls, options):
    """Returns two blocks: one for each half of the network."""
    del options
    return 2

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.mixed <= 1:
      raise ValueError(f"method.mixed={self.mixed} must be 0 to 1.")
    if len(self.model.blocks) < 2:
      raise ValueError(
        "LIRF cuts the network into a lower and an upper half, which takes two "
        f"blocks or more; this {type(self.model).__name__} has depth="
        f"{len(self.model.blocks)}. Use a deeper model or another method."
      )

  @property
  def lower(self):
    """The branches of the blocks below the cut, first to last."""
    return self.model.blocks[: len(self.model.blocks) // 2]

  def init_params(self, params, rng):
    """Adds the deposit, a copy of the lower half."""
    del rng
    if not self.deposit:
      return params
    flat = trees.flatten(params)
    copies = {n: jnp.array(x) for n, x in flat.items() if self.is_low(n)}
    return {**params, "deposit": copies}

  def is_low(self, name: str) -> bool:
    """Returns whether a parameter lies below the cut."""
    low = (*self.model.stem, *self.lower)
    return trees.holder(name, low) is not None

  def init_memory(self, params, trainable):
    """Holds the teacher's lower half.

    Raises:
      ValueError: The optimizer trains a parameter above the cut.
    """
    pattern = trees.pattern((*self.model.stem, *self.lower))
    for name in unlearning.trained(params, trainable):
      if not self.is_low(name) and not name.startswith("deposit/"):
        raise ValueError(
          f"LIRF trains the lower half of the network only, but the optimizer "
          f"trains {name!r}; put a group with the pattern {pattern!r} first "
          "in optimizer.groups and set the others to None."
        )
    memory = super().init_memory(params, trainable)
    low = {n: x for n, x in memory["teacher"].items() if self.is_low(n)}
    return {**memory, "teacher": low}

  def halfway(self, params, inputs, rng=None):
    """Returns the outputs, and the tokens [B, T, D] at the cut."""
    last = self.lower[-1]
    outputs, seen = captures.capture(
      self.model,
      params,
      inputs,
      (last,),
      train=rng is not None,
      rngs=None if rng is None else {"dropout": rng},
    )
    return outputs, seen[last]

  def prepare(self, params, memory, batch):
    """Returns the teacher's features and its attention map, [B, D] each."""
    outputs, tokens = self.halfway(self.teacher(params, memory), batch)
    attention = attention_map(tokens)
    return {"teacher": outputs["features"], "teacher_map": attention}

  def loss(self, params, memory, batch, rng):
    """The sum of all terms; the student sees both streams in one pass."""
    draw, drop, more = jax.random.split(rng, 3)
    wrong = self.wrong(memory, batch["forget"], draw)
    if "teacher" not in wrong:
      wrong.update(self.prepare(params, memory, batch["forget"]))
    streams = wrong, batch["retain"]
    gone, kept = self._student(params, memory, streams, drop)
    teacher = self.taught(params, memory, wrong)
    fit, parts = self.problem.loss(gone, wrong)
    maps = (
      attention_map(gone["tokens"]),
      jax.lax.stop_gradient(wrong["teacher_map"]),
    )
    attention = jnp.mean((maps[0] - maps[1]) ** 2)
    goes, stays = self.columns(memory)
    distill = self.mixed * self._distance(gone, teacher, stays)
    retain, right = self.problem.loss(kept, batch["retain"])
    total = (
      (1 - self.mixed) * fit
      - self.attention * attention
      + self.distill * distill
      + self.retain * retain
    )
    told = {
      "forget": fit,
      "attention": attention,
      "distill": distill,
      "retain": retain,
      "train_accuracy_relabelled": parts["train_accuracy"],
      "train_accuracy_retain": right["train_accuracy"],
    }
    if self.deposit:
      low = trees.update(params, params["deposit"])
      found = self.outputs(low, memory, wrong, more)
      lost, _ = self.problem.loss(found, wrong)
      told["deposit"] = self.mixed * self._distance(found, teacher, goes)
      told["deposit"] += (1 - self.mixed) * lost
      total = total + self.deposit * told["deposit"]
    return total, told

  def _student(self, params, memory, batches, rng):
    """Returns the student's outputs of each batch, with "tokens" at the cut."""
    inputs = ({k: b[k] for k in ("image", "label")} for b in batches)
    outputs, tokens = self.halfway(params, pairing.join(*inputs), rng)
    logits = losses.mask_logits(outputs["logits"], memory["known"])
    found = {**outputs, "logits": logits, "tokens": tokens}
    return pairing.part(found, *(len(b["label"]) for b in batches))

  def columns(self, memory):
    """Returns the classes to forget and those to retain, bool [C] each."""
    goes = memory["forget"]
    if self.by_position:
      goes = jnp.arange(self.num_classes) < jnp.sum(goes)
      return goes, memory["known"] & ~goes
    return goes, memory["known"] & ~goes & ~memory["old"]

  def _distance(self, student, teacher, classes):
    ours = losses.mask_logits(student["logits"], classes)
    theirs = losses.mask_logits(teacher["logits"], classes)
    return losses.distillation(ours, theirs, self.temperature)


def attention_map(tokens: jax.Array, least: float = 0.005) -> jax.Array:
  """Returns the attention map [B, D] of tokens [B, T, D].

  It is the mean over tokens of their squares, scaled to unit length; entries
  below `least` become 0. LIRF (Ye et al., ECCV 2022) defines it for feature
  maps of convolutions, the GS-LoRA code applies it to tokens.
  """
  square = jnp.mean(tokens**2, axis=1)
  length = jnp.sqrt(jnp.sum(square**2, axis=-1, keepdims=True))
  unit = square / jnp.maximum(length, 1e-12)
  return jnp.where(unit < least, 0.0, unit)
