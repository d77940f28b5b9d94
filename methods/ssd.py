"""SSD: dampens weights that matter more for images to forget than for all.

Foster et al., "Fast Machine Unlearning Without Retraining Through Selective
Synaptic Dampening", AAAI 2024. F_f is the diagonal of the Fisher information on
the images to forget, F_d that on all images, `select` is the paper's alpha and
`dampen` its lambda:

  theta <- min(dampen F_d / F_f, 1) theta   where F_f > select F_d.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp

from libml import trees
from methods.parts import unlearning


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSD(unlearning.Unlearning):
  """Measures F in two passes over the images; trains nothing.

  As in the authors' code, F comes from the squares of batches' mean gradients.
  Their batches for F_d mix images to forget and to retain; here a batch has
  images of one kind only.

  Attributes:
    select: A weight is dampened if F_f > select F_d. Images to forget are part
      of all images, so select must be below (all images) / (images to forget):
      the paper's 10 needs requests of less than a tenth of the images.
    dampen: Factor of the dampening.
    layers: Pattern of the parameters that may be dampened; None: all except the
      heads.
  """

  select: float = 1.0
  dampen: float = 1.0
  layers: str | None = None

  positive = ("select", "dampen")

  def check(self, scenario):
    """Raises ValueError if `select` is so large that it selects no weight."""
    for stage in scenario.stages:
      goes, stays = (len(stage.train[role]) for role in ("forget", "retain"))
      most = (goes + stays) / goes
      if self.select >= most:
        raise ValueError(
          f"method.select={self.select} selects no weight in stage "
          f"{stage.index + 1}: with {goes} of {goes + stays} images to forget "
          f"it must be below {most:.3g}; set it lower, but to 1 or more."
        )

  @property
  def rewrites(self):
    """The parameters that may be dampened."""
    if self.layers is not None:
      return self.layers
    return rf"(?!{trees.pattern(self.model.class_heads)}$).*"

  def rounds(self, stage, data):
    """Trains nothing."""
    del stage, data
    return ()

  def after_stage(self, state, stage, data):
    """Dampens the selected weights."""
    del stage
    found = {
      role: data.accumulate("fisher", self.fisher, state, role)
      for role in ("forget", "retain")
    }
    dampened = data.compiled("dampened", self.dampened)
    flat = dampened(state.params, found["forget"], found["retain"])
    return state.replace(params=trees.update(state.params, flat))

  def fisher(self, params, memory, batch):
    """Returns B g^2, g a batch's mean gradient, and B, its number of images."""
    size = jnp.sum(batch["mask"])
    rows = jnp.where(batch["mask"], 1 / size, 0.0)
    names = [n for n in trees.flatten(params) if re.fullmatch(self.rewrites, n)]
    grads = self.gradient(params, memory, batch, names=names, weights=rows)
    return jax.tree.map(lambda g: size * g**2, grads), size

  def dampened(self, params, forget, retain):
    """Returns the dampened parameters by name.

    Args:
      params: All parameters.
      forget: Sums of `fisher` over the images to forget.
      retain: The same over the images to retain.
    """
    flat = trees.flatten(params)
    (goes, n_goes), (stays, n_stays) = forget, retain

    def one(name):
      theta, f = flat[name], goes[name] / n_goes
      d = (goes[name] + stays[name]) / (n_goes + n_stays)
      factor = jnp.minimum(self.dampen * d / jnp.where(f > 0, f, 1.0), 1.0)
      return jnp.where(f > self.select * d, theta * factor, theta)

    return {name: one(name) for name in goes}
