"""Everything that changes while a run goes on, as one pytree."""

from typing import Any

import jax
from flax import struct


class TrainState(struct.PyTreeNode):
  """The arrays of a run; settings live in frozen objects elsewhere.

  Attributes:
    step: int32[], steps taken in this stage.
    steps_per_epoch: int32[], length of this stage's epoch, for the schedules.
    params: All parameters, frozen ones included.
    opt_state: Moments of what is trained; frozen weights have none.
    memory: What the method carries over stages; its structure is fixed.
    rng: Typed key of this stage; a step folds its number in.
  """

  step: jax.Array
  steps_per_epoch: jax.Array
  params: Any
  opt_state: Any
  memory: Any
  rng: jax.Array
