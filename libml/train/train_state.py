"""All arrays of a run, as one pytree."""

from typing import Any

import jax
from flax import struct


class TrainState(struct.PyTreeNode):
  """The arrays of a run; a Method and an Optimizer hold the settings.

  Attributes:
    step: int32[], steps taken in this stage.
    steps_per_epoch: int32[], steps of one epoch, for the schedules.
    params: All parameters, frozen ones included.
    opt_state: Moments of the trained parameters.
    memory: Arrays that the method carries over stages, of fixed structure.
    rng: Typed key of this stage; each step folds its number into it.
  """

  step: jax.Array
  steps_per_epoch: jax.Array
  params: Any
  opt_state: Any
  memory: Any
  rng: jax.Array
