"""Holds out training images as the test split, to tune hyper-parameters on."""

import dataclasses
from typing import TypeVar

from libml.datasets import collection
from libml.datasets import source
from libml.datasets import swap

DataT = TypeVar(
  "DataT", bound=source.Source | collection.Collection | swap.Swap
)


def hold_out(data: DataT, fraction: float, seed: int) -> DataT:
  """Returns data for tuning, whose test split is part of the training split.

  The result contains neither the true test split nor images of other classes,
  so hyper-parameters chosen on it cannot depend on test images.

  Args:
    data: A source, or a collection or a swap, each part of which is divided.
    fraction: Fraction of each class's training images that become the test
      split.
    seed: Decides which images become the test split.

  Returns:
    Data of the type of `data`: a Source, a Collection or a Swap.

  Raises:
    ValueError: As `stratify`.
  """
  if isinstance(data, collection.Collection):
    parts = tuple(hold_out(part, fraction, seed) for part in data.parts)
    return dataclasses.replace(data, parts=parts)
  if isinstance(data, swap.Swap):
    old = hold_out(data.old, fraction, seed)
    learn = hold_out(data.learn, fraction, seed)
    return dataclasses.replace(data, old=old, learn=learn)
  train = data.splits["train"]
  left, held = source.stratify(train.labels, fraction, source.generator(seed))
  return dataclasses.replace(
    data,
    splits={"train": train.rows(left), "test": train.rows(held)},
    others=None,
    other_names=(),
    origin=f"{data.origin}; test held out of train: fraction {fraction}, "
    f"seed {seed}",
  )
