"""Training on the images to retain, without those to forget."""

import dataclasses

from methods.parts import unlearning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retaining(unlearning.Unlearning):
  """Trains on the images to retain."""

  streams = {"retain": ("retain",)}

  def loss(self, params, memory, batch, rng):
    """The cross entropy of the images to retain."""
    outputs = self.outputs(params, memory, batch["retain"], rng)
    return self.problem.loss(outputs, batch["retain"])
