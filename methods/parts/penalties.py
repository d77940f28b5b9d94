r"""L2, EWC and MAS: wrong labels, and a penalty on changes of the weights.

A batch mixes images to forget, with wrong labels, and images to retain:

  CE + strength sum_k sum_i w_ki (theta_i - theta_ki)^2,

where theta_k, anchor k, are the network's weights before request k, and w_k is
their importance: 1 in L2, a proxy of the Fisher information in EWC (Kirkpatrick
et al., PNAS 2017), the sensitivity of the logits in MAS (Aljundi et al., ECCV
2018); EWC and MAS are the GS-LoRA code's versions. A sum of quadratics is a
quadratic: for any number of requests memory holds the sum of importances
("weights"), the mean anchor weighted by them, and a constant.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from libml import trees
from methods.parts import unlearning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Penalty(unlearning.Relabelling):
  """Trains on a mix of images to forget and images to retain.

  Attributes:
    strength: Weight of the penalty.
  """

  strength: float

  unsigned = ("strength",)
  epoch = ("forget", "retain")
  streams = {"train": epoch}

  def init_memory(self, params, trainable):
    """Holds a penalty of 0: no anchor yet."""
    leaves = unlearning.trained(params, trainable)
    return {
      **super().init_memory(params, trainable),
      "weights": self.no_weights(leaves),
      "anchor": {name: jnp.zeros_like(leaf) for name, leaf in leaves.items()},
      "constant": jnp.zeros(()),
    }

  def no_weights(self, leaves: dict[str, Any]) -> dict[str, Any]:
    """Returns importances of 0, by parameter name."""
    return {name: jnp.zeros_like(leaf) for name, leaf in leaves.items()}

  def before_stage(self, state, stage, data):
    """Adds an anchor at the weights before this request."""
    state = super().before_stage(state, stage, data)
    seen, count = self.importance(state, stage, data)
    add = data.compiled("add_anchor", self.add_anchor)
    memory = add(state.memory, state.params, seen, count)
    return state.replace(memory=memory)

  def importance(
    self, state: Any, stage: Any, data: Any
  ) -> tuple[dict[str, Any], int]:
    """Returns sums of the new anchor's importances, and the number of terms."""
    raise NotImplementedError

  def add_anchor(
    self, memory: Any, params: Any, seen: dict[str, Any], count: Any
  ) -> dict[str, Any]:
    """Returns the memory with one more anchor in the quadratic.

    Args:
      memory: Of the method.
      params: All parameters; their values are the new anchor.
      seen: Sums from `importance`.
      count: Number of terms in these sums.
    """
    flat = trees.flatten(params)
    weights, anchor, constant = {}, {}, memory["constant"]
    for name, old in memory["weights"].items():
      new = seen[name] / count
      weights[name] = old + new
      # Exactly 1 for the first anchor, so that the penalty starts at exactly 0.
      share = jnp.where(old > 0, new / weights[name], 1.0)
      gap = flat[name] - memory["anchor"][name]
      anchor[name] = memory["anchor"][name] + share * gap
      constant = constant + jnp.sum(old * share * gap**2)
    changed = {"weights": weights, "anchor": anchor, "constant": constant}
    return {**memory, **changed}

  def penalty(self, params: Any, memory: Any) -> jax.Array:
    """Returns the sum over all anchors, not yet times strength."""
    flat = trees.flatten(params)
    return memory["constant"] + sum(
      jnp.sum(weight * (flat[name] - memory["anchor"][name]) ** 2)
      for name, weight in memory["weights"].items()
    )

  def loss(self, params, memory, batch, rng):
    """Cross entropy with wrong labels for images to forget, and the penalty."""
    draw, drop = jax.random.split(rng)
    rows = self.wrong(memory, batch["train"], draw)
    outputs = self.outputs(params, memory, rows, drop)
    fit, parts = self.problem.loss(outputs, rows)
    penalty = self.penalty(params, memory)
    return fit + self.strength * penalty, {**parts, "penalty": penalty}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighing(Penalty):
  """Measures the importance of weights on images to retain.

  Attributes:
    weigh_on: Role of these images from the second request on: "retain", the
      sample, or "retain_all", all images to retain, as in the released code;
      this needs scenario.whole_retain=True.
  """

  weigh_on: str = "retain"

  def __post_init__(self):
    super().__post_init__()
    if self.weigh_on not in ("retain", "retain_all"):
      raise ValueError(
        f"method.weigh_on={self.weigh_on!r} must be 'retain' or 'retain_all'."
      )

  def check(self, scenario):
    """Raises ValueError unless later stages have the images of `weigh_on`."""
    for stage in scenario.stages[1:]:
      if self.weigh_on not in stage.train:
        raise ValueError(
          f"method.weigh_on={self.weigh_on!r} needs images of that role, but "
          f"stage {stage.index + 1} has only {sorted(stage.train)}; set "
          "scenario.whole_retain=True."
        )

  def importance(self, state, stage, data):
    """Returns the sum of `weigh` over the batches, and their number."""
    role = self.weigh_on if stage.index else "retain"
    seen = data.accumulate("weigh", self.weigh, state, role)
    return seen, -(-len(data.subset((role,))) // data.batch_size)

  def weigh(self, params: Any, memory: Any, batch: Any) -> dict[str, Any]:
    """Returns what one batch adds to the importances, by parameter name."""
    raise NotImplementedError
