"""Gradient ascent on the images to forget.

Commonly cited with Thudi et al., "Unrolling SGD", EuroS&P 2022, and Graves et
al., "Amnesiac Machine Learning", AAAI 2021.
"""

import dataclasses

from methods.parts import unlearning


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientAscent(unlearning.Unlearning):
  """Raises the cross entropy of the images to forget, without a bound."""

  epoch = ("forget",)
  streams = {"forget": ("forget",)}

  def loss(self, params, memory, batch, rng):
    """The negative cross entropy."""
    outputs = self.outputs(params, memory, batch["forget"], rng)
    forget, parts = self.problem.loss(outputs, batch["forget"])
    return -forget, {"forget": forget, **parts}
