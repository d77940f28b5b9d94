"""SSD: weights that matter more for what goes than for the rest are dampened.

Foster et al., "Fast Machine Unlearning Without Retraining Through Selective
Synaptic Dampening", AAAI 2024. With F the diagonal of the Fisher information,
on what goes (f) and on all images (d), `select` the paper's alpha and `dampen`
its lambda:

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
  """Two passes over the images; nothing is trained.

  As in the authors' code a batch's mean gradient, squared, stands for its
  images'; theirs mix what goes with what stays when they pass over all, ours
  hold one of the two.

  Attributes:
    select: How much more a weight must matter for what goes. What goes is among
      all images, so above their number over that of those that go nothing is
      selected: the paper's 10 takes requests of less than a tenth.
    dampen: Factor of the dampening.
    layers: Pattern of the parameters that may be dampened; None: all but the
      heads'.
  """

  select: float = 1.0
  dampen: float = 1.0
  layers: str | None = None

  positive = ("select", "dampen")

  def check(self, scenario):
    """Some weight may matter that much more."""
    for stage in scenario.stages:
      goes, stays = (len(stage.train[role]) for role in ("forget", "retain"))
      most = (goes + stays) / goes
      if self.select >= most:
        raise ValueError(
          f"method.select={self.select} selects nothing in stage "
          f"{stage.index + 1}: with {goes} of {goes + stays} images to forget "
          f"no weight matters {most:.3g} times as much for them as for all; "
          "set it lower, to 1 at least."
        )

  @property
  def rewrites(self):
    """What may be dampened."""
    if self.layers is not None:
      return self.layers
    return rf"(?!{trees.pattern(self.model.class_heads)}$).*"

  def rounds(self, stage, data):
    """Has none."""
    del stage, data
    return ()

  def after_stage(self, state, stage, data):
    """Dampens."""
    del stage
    found = {
      role: data.accumulate("fisher", self.fisher, state, role)
      for role in ("forget", "retain")
    }
    dampened = data.compiled("dampened", self.dampened)
    flat = dampened(state.params, found["forget"], found["retain"])
    return state.replace(params=trees.update(state.params, flat))

  def fisher(self, params, memory, batch):
    """Returns a batch's squared mean gradient times its images, and these."""
    size = jnp.sum(batch["mask"])
    rows = jnp.where(batch["mask"], 1 / size, 0.0)
    names = [n for n in trees.flatten(params) if re.fullmatch(self.rewrites, n)]
    grads = self.gradient(params, memory, batch, names=names, weights=rows)
    return jax.tree.map(lambda g: size * g**2, grads), size

  def dampened(self, params, forget, retain):
    """Returns the changed parameters."""
    flat = trees.flatten(params)
    (goes, n_goes), (stays, n_stays) = forget, retain

    def one(name):
      theta, f = flat[name], goes[name] / n_goes
      d = (goes[name] + stays[name]) / (n_goes + n_stays)
      factor = jnp.minimum(self.dampen * d / jnp.where(f > 0, f, 1.0), 1.0)
      return jnp.where(f > self.select * d, theta * factor, theta)

    return {name: one(name) for name in goes}
