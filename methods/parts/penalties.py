r"""L2, EWC and MAS: wrong labels, and weights held where they were.

Images to forget, under wrong labels y', and images to retain come mixed:

  CE + strength sum_k sum_i w_ki (theta_i - theta_ki)^2,

where theta_k are the weights before request k and w_k what these weigh: 1 in
L2, a proxy of the Fisher information in EWC (Kirkpatrick et al., PNAS 2017),
the answers' sensitivity in MAS (Aljundi et al., ECCV 2018); both as the GS-LoRA
code has them. A sum of quadratics is one quadratic: for any number of requests
memory holds the weights' sum, their mean anchor, and a constant.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from libml import trees
from methods.parts import unlearning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Penalty(unlearning.Relabelling):
  """Trains on a mix of what goes and what stays.

  Attributes:
    strength: Of the penalty.
  """

  strength: float

  unsigned = ("strength",)
  epoch = ("forget", "retain")
  streams = {"train": epoch}

  def init_memory(self, params, trainable):
    """Holds no anchor yet."""
    leaves = unlearning.trained(params, trainable)
    return {
      **super().init_memory(params, trainable),
      "weights": self.no_weights(leaves),
      "anchor": {name: jnp.zeros_like(leaf) for name, leaf in leaves.items()},
      "constant": jnp.zeros(()),
    }

  def no_weights(self, leaves: dict[str, Any]) -> dict[str, Any]:
    """Returns zeros of the weights' shapes."""
    return {name: jnp.zeros_like(leaf) for name, leaf in leaves.items()}

  def before_stage(self, state, stage, data):
    """Adds an anchor at the present weights."""
    state = super().before_stage(state, stage, data)
    seen, count = self.importance(state, stage, data)
    add = data.compiled("add_anchor", self.add_anchor)
    memory = add(state.memory, state.params, seen, count)
    return state.replace(memory=memory)

  def importance(
    self, state: Any, stage: Any, data: Any
  ) -> tuple[dict[str, Any], int]:
    """Returns sums of the new anchor's weights, and of how many they are."""
    raise NotImplementedError

  def add_anchor(
    self, memory: Any, params: Any, seen: dict[str, Any], count: Any
  ) -> dict[str, Any]:
    """Returns the memory with one more quadratic in the sum."""
    flat = trees.flatten(params)
    weights, anchor, constant = {}, {}, memory["constant"]
    for name, old in memory["weights"].items():
      new = seen[name] / count
      weights[name] = old + new
      # Exactly 1 where it is the first: there nothing must pull.
      share = jnp.where(old > 0, new / weights[name], 1.0)
      gap = flat[name] - memory["anchor"][name]
      anchor[name] = memory["anchor"][name] + share * gap
      constant = constant + jnp.sum(old * share * gap**2)
    changed = {"weights": weights, "anchor": anchor, "constant": constant}
    return {**memory, **changed}

  def penalty(self, params: Any, memory: Any) -> jax.Array:
    """Returns the sum over all anchors, without its strength."""
    flat = trees.flatten(params)
    return memory["constant"] + sum(
      jnp.sum(weight * (flat[name] - memory["anchor"][name]) ** 2)
      for name, weight in memory["weights"].items()
    )

  def loss(self, params, memory, batch, rng):
    """Cross entropy with wrong labels among the right, and the penalty."""
    draw, drop = jax.random.split(rng)
    rows = self.wrong(memory, batch["train"], draw)
    outputs = self.outputs(params, memory, rows, drop)
    fit, parts = self.problem.loss(outputs, rows)
    penalty = self.penalty(params, memory)
    return fit + self.strength * penalty, {**parts, "penalty": penalty}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighing(Penalty):
  """Images say what weights matter.

  Attributes:
    weigh_on: Role of these images from the second request on: "retain", or
      "retain_all" as in the released code, which then reads all images and not
      the sample (scenario.whole_retain).
  """

  weigh_on: str = "retain"

  def __post_init__(self):
    super().__post_init__()
    if self.weigh_on not in ("retain", "retain_all"):
      raise ValueError(
        f"method.weigh_on={self.weigh_on!r} must be 'retain' or 'retain_all'."
      )

  def check(self, scenario):
    """The images that are to be weighed on are there."""
    for stage in scenario.stages[1:]:
      if self.weigh_on not in stage.train:
        raise ValueError(
          f"method.weigh_on={self.weigh_on!r}, and stage {stage.index + 1} has "
          f"only {sorted(stage.train)}; set scenario.whole_retain=True."
        )

  def importance(self, state, stage, data):
    """The sum over the batches of a sweep, and their number."""
    role = self.weigh_on if stage.index else "retain"
    seen = data.accumulate("weigh", self.weigh, state, role)
    return seen, -(-len(data.subset((role,))) // data.batch_size)

  def weigh(self, params: Any, memory: Any, batch: Any) -> dict[str, Any]:
    """Returns what one batch adds."""
    raise NotImplementedError
