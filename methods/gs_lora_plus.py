"""GS-LoRA++: GS-LoRA with prototypes of the classes.

Zhao et al., arXiv 2501.09705; the loss is in parts/group_sparse.py.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from libml.problems import prototypes
from methods.parts import class_means
from methods.parts import group_sparse


@dataclasses.dataclass(frozen=True, kw_only=True)
class GsLoraPlus(group_sparse.GroupSparse):
  """Moves features away from the prototypes to forget, towards those to retain.

  A class's prototype is the mean feature of its sampled images.

  Attributes:
    proto_forget: w_f, one value for each request.
    proto_retain: w_r, one value for each request.
    proto_bound: bound_p, the mean distance above which a batch to forget has no
      further effect.
    proto_distance: Key of prototypes.DISTANCES.
    proto_source: Which model computes prototypes: "start", the model at the
      start of the request; "pretrained", the model before the first request.
  """

  proto_forget: Sequence[float] = (0.01,)
  proto_retain: Sequence[float] = (0.0,)
  proto_bound: float = 18.0
  proto_distance: str = "kl"
  proto_source: str = "start"

  mixes = False  # a mixed image has no single prototype

  def __post_init__(self):
    super().__post_init__()
    self._check_finite("proto_bound")
    allowed = {
      "proto_distance": tuple(prototypes.DISTANCES),
      "proto_source": ("start", "pretrained"),
    }
    for name, known in allowed.items():
      if getattr(self, name) not in known:
        raise ValueError(
          f"method.{name}={getattr(self, name)!r} must be one of {known}."
        )

  def check(self, scenario):
    """Raises ValueError unless each request has its weights."""
    super().check(scenario)
    for name in ("proto_forget", "proto_retain"):
      self._check_weights(name, len(scenario.stages))

  def init_memory(self, params, trainable):
    """Holds the prototypes [C, D] and the stage's weights as well."""
    return {
      **super().init_memory(params, trainable),
      "prototypes": jnp.zeros((self.num_classes, self.model.width)),
      "proto_forget": jnp.zeros(()),
      "proto_retain": jnp.zeros(()),
    }

  def before_stage(self, state, stage, data):
    """Computes the prototypes; new adapters have B = 0 and change nothing."""
    state = super().before_stage(state, stage, data)
    memory = {
      **state.memory,
      "proto_forget": jnp.float32(self.proto_forget[stage.index]),
      "proto_retain": jnp.float32(self.proto_retain[stage.index]),
    }
    if self.proto_source == "start" or not stage.index:
      seen = class_means.sums(self, state, data, "forget", "retain")
      memory["prototypes"] = prototypes.means(seen["sums"], seen["counts"])
    return state.replace(memory=memory)

  def further(self, memory, batch, retained, forgotten):
    """The prototype terms: mean distances of features to their prototypes."""
    distance = prototypes.DISTANCES[self.proto_distance]
    retain, forget = (
      distance(outputs["features"], memory["prototypes"][batch[name]["label"]])
      for name, outputs in (("retain", retained), ("forget", forgotten))
    )
    push = jax.nn.relu(self.proto_bound - forget)
    loss = memory["proto_forget"] * push + memory["proto_retain"] * retain
    return loss, {"proto_retain": retain, "proto_forget": forget}
