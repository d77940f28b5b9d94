"""NegGrad+: ascent on the images to forget, descent on those to retain.

Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023:

  loss = weight CE_r - (1 - weight) CE_f
"""

import dataclasses

from methods.parts import unlearning


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegGrad(unlearning.Unlearning):
  """Trains on the difference of two cross entropies.

  Attributes:
    weight: Weight of the images to retain, 0 to 1.
  """

  weight: float = 0.95

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.weight <= 1:
      raise ValueError(f"method.weight={self.weight} must be 0 to 1.")

  def loss(self, params, memory, batch, rng):
    """The weighted difference of cross entropies."""
    streams = batch["forget"], batch["retain"]
    gone, kept = self.both(params, memory, streams, rng)
    forget, lost = self.problem.loss(gone, batch["forget"])
    retain, right = self.problem.loss(kept, batch["retain"])
    return self.weight * retain - (1 - self.weight) * forget, {
      "forget": forget,
      "retain": retain,
      "train_accuracy_forget": lost["train_accuracy"],
      "train_accuracy_retain": right["train_accuracy"],
    }
