"""NegGrad+: ascent on what goes beside descent on what stays.

Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023:
weight CE_r - (1 - weight) CE_f.
"""

import dataclasses

from methods.parts import unlearning


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegGrad(unlearning.Unlearning):
  """Descends on what stays and ascends on what goes.

  Attributes:
    weight: Of what stays.
  """

  weight: float = 0.95

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.weight <= 1:
      raise ValueError(f"method.weight={self.weight} must lie in 0 to 1.")

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
