r"""LwF, DER, DER++ and FDR: wrong labels, and a teacher for images to retain.

These are the GS-LoRA code's versions. x_f are images to forget with wrong
labels y', x_r images to retain, s is the student and t the teacher:

  LwF    CE(s(x_f), y') + d KL(t(x_r) || s(x_r)) T^2 + r CE(x_r)
  DER    CE(s(x_f), y') + d ||emb_s(x_r) - emb_t(x_r)||_F^2
  DER++  the same + r CE(another batch of x_r)
  FDR    CE(s(x_f), y') + d mean ||s(x_r) - t(x_r)||

Li and Hoiem, "Learning without Forgetting", ECCV 2016; Buzzega et al., "Dark
Experience", NeurIPS 2020 (which compares logits, where DER here compares
features, summed over the batch); Benjamin et al., "Measuring and regularizing
networks in function space", ICLR 2019.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from libml.train.method import Outputs
from methods.parts import teaching
from methods.parts import unlearning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distilling(teaching.Taught, unlearning.Relabelling):
  """Learns wrong labels at a small distance from the teacher.

  An epoch is a pass over the images to forget; those to retain repeat.

  Attributes:
    distill: d, weight of the distance to the teacher.
  """

  distill: float

  unsigned = ("distill",)
  epoch = ("forget",)

  def loss(self, params, memory, batch, rng):
    """Cross entropy of wrong labels, distance to the teacher, further terms."""
    draw, drop, more = jax.random.split(rng, 3)
    forget = self.wrong(memory, batch["forget"], draw)
    streams = forget, batch["retain"]
    gone, kept = self.both(params, memory, streams, drop)
    relabelled, parts = self.problem.loss(gone, forget)
    teacher = self.taught(params, memory, batch["retain"])
    distance = self.distance(kept, teacher)
    total = relabelled + self.distill * distance
    rest, others = self.further(params, memory, batch, kept=kept, rng=more)
    return total + rest, {
      "forget": relabelled,
      "distill": distance,
      "train_accuracy_relabelled": parts["train_accuracy"],
      **others,
    }

  def distance(self, student: Outputs, teacher: Outputs) -> jax.Array:
    """Returns the distance of the student from the teacher, float32[].

    Args:
      student: Outputs on the images to retain.
      teacher: "features" [B, D] and "logits" [B, C] of the same images.
    """
    raise NotImplementedError

  def further(
    self, params: Any, memory: Any, batch: Any, *, kept: Outputs, rng: Any
  ) -> tuple[Any, dict[str, jax.Array]]:
    """Returns the loss's further terms, summed, and their parts for the log."""
    del params, memory, batch, kept, rng
    return 0.0, {}

  def fit(
    self, outputs: Outputs, batch: Any, weight: float
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the weighted cross entropy of a batch, and parts for the log."""
    retain, parts = self.problem.loss(outputs, batch)
    accuracy = parts["train_accuracy"]
    told = {"retain": retain, "train_accuracy_retain": accuracy}
    return weight * retain, told


def squared_gap(student: Outputs, teacher: Outputs) -> jax.Array:
  """Returns the squared distance of the features, summed over the batch."""
  return jnp.sum((student["features"] - teacher["features"]) ** 2)
