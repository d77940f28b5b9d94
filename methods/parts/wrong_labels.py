"""Random labels: CE(x_f, y') + retain CE(x_r), y' drawn from other classes."""

import dataclasses

import jax

from methods.parts import unlearning


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrongLabels(unlearning.Relabelling):
  """Learns wrong labels of images to forget and true labels of those to retain.

  Attributes:
    retain: Weight of the cross entropy of the images to retain.
  """

  retain: float = 1.0

  unsigned = ("retain",)

  def loss(self, params, memory, batch, rng):
    """The sum of both cross entropies."""
    draw, drop = jax.random.split(rng)
    wrong = self.wrong(memory, batch["forget"], draw)
    streams = wrong, batch["retain"]
    gone, kept = self.both(params, memory, streams, drop)
    forget, lost = self.problem.loss(gone, wrong)
    retain, right = self.problem.loss(kept, batch["retain"])
    return forget + self.retain * retain, {
      "forget": forget,
      "retain": retain,
      "train_accuracy_relabelled": lost["train_accuracy"],
      "train_accuracy_retain": right["train_accuracy"],
    }
