"""Sums of the features of each class, from one pass over the images."""

import functools
from typing import Any

import jax

from libml.pipeline.stage_data import StageData
from libml.problems import prototypes
from libml.train.method import Method
from libml.train.train_state import TrainState


def batch_sums(
  method: Method, params: Any, memory: Any, batch: Any
) -> dict[str, jax.Array]:
  """Returns what a batch adds to its classes: "sums" [C, D], "counts" [C].

  Args:
    method: Its model computes the features.
    params: All parameters.
    memory: Not read.
    batch: image [B, H, W, 3], label int32 [B], mask bool [B].
  """
  del memory
  features = method.apply(params, batch)["features"]
  return prototypes.class_sums(
    features, batch["label"], batch["mask"], method.num_classes
  )


def sums(
  method: Method,
  state: TrainState,
  data: StageData,
  *roles: str,
  augment: bool = False,
) -> dict[str, jax.Array]:
  """Returns the sum of `batch_sums` over the images of some roles.

  Args:
    method: Its model computes the features.
    state: The TrainState with the model's parameters.
    data: The stage's data.
    *roles: Roles whose images are read.
    augment: Whether images go through the training chain.

  Raises:
    Stopped: The process was asked to stop.
  """
  add = functools.partial(batch_sums, method)
  return data.accumulate("class_sums", add, state, *roles, augment=augment)
