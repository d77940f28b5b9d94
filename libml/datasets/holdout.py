"""Training images that take the place of the test images, to tune on."""

import dataclasses
from typing import TypeVar

from libml.datasets import collection
from libml.datasets import source
from libml.datasets import swap

DataT = TypeVar(
  "DataT", bound=source.Source | collection.Collection | swap.Swap
)


def hold_out(data: DataT, fraction: float, seed: int) -> DataT:
  """Returns data for tuning: their test split is part of the training split.

  The true test split does not occur in the result, nor do test images of
  further classes, so nothing that is chosen on it can have seen test images.

  Args:
    data: The whole source, or a collection or a swap, each part of which is
      divided.
    fraction: Part of each class's training images that becomes the test split.
    seed: Decides which images.

  Returns:
    What was given: a Source, a Collection or a Swap.

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
