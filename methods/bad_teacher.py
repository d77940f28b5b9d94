"""Bad teacher: the student imitates a random network on images to forget.

Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023. On images to
retain the student imitates the model as it was before the first request. The
loss is the mean of KL(teacher || student) over all images, here times T^2.
"""

import dataclasses

import jax
import jax.numpy as jnp

from libml.problems import losses
from methods.parts import teaching
from models import initial


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadTeacher(teaching.Taught):
  """Distils two teachers; the bad one has random weights.

  Both are evaluated once for each image. With augmentation they are evaluated
  in every step, and the bad teacher's weights are drawn from the same seed each
  time instead of being stored.

  Attributes:
    temperature: T.
    draw: Seed of the bad teacher's weights.
  """

  temperature: float = 1.0
  draw: int = 0

  positive = ("temperature",)
  prepared = ("forget", "retain")

  def bad(self, batch):
    """Returns the bad teacher's logits [B, C]."""
    rng = jax.random.key(self.draw)
    params = self.model.init(rng, self.model.example_input())["params"]
    params = initial.draw_heads(params, rng, self.model.class_heads)
    return self.apply(params, batch)["logits"]

  def prepare(self, params, memory, batch):
    """Returns the teacher's features [B, D] and the bad one's logits [B, C]."""
    good = super().prepare(params, memory, batch)
    return {**good, "bad": self.bad(batch)}

  def loss(self, params, memory, batch, rng):
    """Distillation from both teachers, each image weighted alike."""
    streams = batch["forget"], batch["retain"]
    gone, kept = self.both(params, memory, streams, rng)
    bad = batch["forget"].get("bad")
    bad = self.bad(batch["forget"]) if bad is None else bad
    bad = losses.mask_logits(bad, memory["known"])
    good = self.taught(params, memory, batch["retain"])["logits"]
    forget = losses.distillation(gone["logits"], bad, self.temperature)
    retain = losses.distillation(kept["logits"], good, self.temperature)
    sizes = [len(rows["label"]) for rows in streams]
    total = (sizes[0] * forget + sizes[1] * retain) / sum(sizes)
    hits = jnp.argmax(kept["logits"], axis=-1) == batch["retain"]["label"]
    return total, {
      "forget_distill": forget,
      "retain_distill": retain,
      "train_accuracy_retain": jnp.mean(hits),
    }
