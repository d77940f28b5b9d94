"""Several sources in order: data sets to join, or domains of one data set."""

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from libml import registry
from libml.datasets import source as source_lib


@dataclasses.dataclass(frozen=True, eq=False)
class Collection:
  """Several sources in order: data sets to join, or domains of one data set.

  Parts may differ in size, channels and encoding of their images, and in
  classes. Several parts may share one Split.

  Attributes:
    name: Key of DATASETS.
    parts: The sources.

  Raises:
    ValueError: There is no part, or a part has `others`.
  """

  name: str
  parts: tuple[source_lib.Source, ...]

  def __post_init__(self):
    """Checks the fields."""
    if not self.parts:
      raise ValueError(
        f"Collection {self.name!r} has no parts; name one or more."
      )
    for part in self.parts:
      if part.others is not None:
        raise ValueError(
          f"Part {part.name!r} of the collection has images of other classes, "
          "but a collection has no class ids for them; leave out its option "
          "others."
        )

  @functools.cached_property
  def description(self) -> dict[str, Any]:
    """Name, and the description of each part."""
    return {
      "name": self.name,
      "parts": [part.description for part in self.parts],
    }


def collection(
  table: Mapping[str, Callable[..., Any]],
  /,
  *,
  order: Sequence[str],
  per_class: int | None = None,
  **parts: Mapping[str, Any],
) -> Collection:
  """Returns several data sets as one collection.

  Args:
    table: DATASETS.
    order: Names of the parts, in order.
    per_class: As in `limit`; None: all images.
    **parts: For each name in `order`, {"name": key of DATASETS, ...options}.
      The source gets the part's name. If the data set is a collection, its
      parts take the place of this part and keep their names.

  Raises:
    ValueError: `order` names a part twice, a part of it has no options or is a
      swap, or there are options for a part that is not in it; or what the data
      sets raise.
  """
  if len(set(order)) < len(order):
    raise ValueError(
      f"The order {list(order)} names a part twice; name each part once."
    )
  for name in order:
    if "name" not in parts.get(name, {}):
      raise ValueError(
        f"Part {name!r} of the order has no data set; give "
        f"{name}={{'name': ...}}. {registry.nearest(name, parts)}"
      )
  for name in parts:
    if name not in order:
      raise ValueError(
        f"Part {name!r} is not in the order; add it there or remove it. "
        f"{registry.nearest(name, order)}"
      )
  found = []
  for name in order:
    data = registry.build(table, "dataset", **parts[name])
    if isinstance(data, Collection):
      found += data.parts
    elif isinstance(data, source_lib.Source):
      found.append(dataclasses.replace(data, name=name))
    else:
      raise ValueError(
        f"Part {name!r} of the order is {data.name!r}, the three sets of a "
        "swap, which cannot be joined; remove it from the order."
      )
  whole = Collection("collection", tuple(found))
  return whole if per_class is None else limit(whole, per_class)


def limit(whole: Collection, per_class: int) -> Collection:
  """Returns a smaller collection, for quick runs.

  Of a class's n images, those at the positions 0, n / k, 2 n / k, ..., rounded
  down, are kept. They are spread over the whole class, so that several videos
  are kept where frames are stored in sequence.

  Args:
    whole: The collection. Splits that its parts share stay shared.
    per_class: k, the most images of each class in each split of each part.

  Raises:
    ValueError: `per_class` is below 1.
  """
  if per_class < 1:
    raise ValueError(f"per_class={per_class} must be at least 1.")

  @functools.cache  # by identity, so that a shared split stays shared
  def smaller(split: source_lib.Split) -> source_lib.Split:
    keep = []
    for label in np.unique(split.labels):
      rows = np.flatnonzero(split.labels == label)
      count = min(per_class, len(rows))
      keep.append(rows[np.arange(count) * len(rows) // count])
    rows = np.sort(np.concatenate([np.zeros(0, np.int64), *keep]))
    return split.rows(rows)

  return dataclasses.replace(
    whole,
    parts=tuple(
      dataclasses.replace(
        part,
        splits={key: smaller(split) for key, split in part.splits.items()},
        origin=f"{part.origin}; {per_class} images a class",
      )
      for part in whole.parts
    ),
  )
