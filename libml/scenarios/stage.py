"""What a scenario is made of: stages, their data, and what is measured."""

import dataclasses
import os
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from libml import datasets
from libml.datasets import class_map
from libml.problems import Problem

# After each stage: test set -> reading -> metric -> value.
Row = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True, eq=False)
class TestSet:
  """Images that a model is measured on after a stage.

  Attributes:
    subset: The images.
    classes: Ids that a prediction may name; all of them in class-incremental
      evaluation, the task's own in task-incremental evaluation.
    augment: Whether images go through the training chain of preprocessing
      instead of the evaluation chain.
    problem: Measures the model's outputs; None: the method's own problem does.
      Entries of a batch named in its `hidden` are removed before the model
      runs. Problems of one type must share one `measure`: it is compiled once.
    trained: Whether stages train on these images.
  """

  subset: datasets.Subset
  classes: tuple[int, ...]
  augment: bool = False
  problem: Problem | None = None
  trained: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
  """One unit of a run: train, measure, save.

  Attributes:
    index: Number, from 0.
    goal: "learn", "forget", or "swap" (both in one stage).
    train: Role ("learn", "seen", "forget", "retain") -> training images.
    test_sets: Name -> test set to measure after the stage; {}: none.
    classes: Role -> class ids.
    name: For tables and pictures.
    epoch_steps: Role -> steps of one epoch; a role that is missing here takes
      as many as its images fill.
  """

  index: int
  goal: str
  train: Mapping[str, datasets.Subset]
  test_sets: Mapping[str, TestSet]
  classes: Mapping[str, tuple[int, ...]]
  name: str = ""
  epoch_steps: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Scenario:
  """An ordered list of stages.

  Attributes:
    stages: In order.
    num_classes: Columns of the head.
    summarize: (rows, reading, metric) -> {name: value} of the last row. Rows
      are those measured so far, the row of `before` first, if there is one.
    test_sets: Names of the accuracy matrix's rows, in order. Other test sets
      of the stages are measured, but have no row.
    description: Plain facts for the results.
    seeds: Name of a random draw -> its seed; None: not drawn.
    class_names: One name per column of the head; (): classes have no names.
    new_classes: How many columns at the head's end pretrained weights lack.
    before: Name -> test set to measure before the first stage; {}: none.
  """

  stages: tuple[Stage, ...]
  num_classes: int
  summarize: Callable[[Sequence[Row], str, str], dict[str, float]]
  test_sets: tuple[str, ...]
  description: Mapping[str, object]
  seeds: Mapping[str, int | None]
  class_names: tuple[str, ...] = ()
  new_classes: int = 0
  before: Mapping[str, TestSet] = dataclasses.field(default_factory=dict)

  @property
  def forgotten(self) -> dict[int, tuple[int, ...]]:
    """Index of each stage that forgets -> the class ids that it forgets."""
    stages = (s for s in self.stages if s.goal != "learn")
    return {s.index: s.classes["forget"] for s in stages}

  def columns(self, names: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Returns which columns of a weight file's head to load.

    Args:
      names: Text file with the names of the head's classes, one per line; None:
        the head has this scenario's classes, in this order.

    Returns:
      "rows" and "new", the arguments of `pretrained.load`.

    Raises:
      FileNotFoundError: No such file of names.
      ValueError: A class that the file does not name, or a name that it has
        twice.
    """
    known = self.class_names[: len(self.class_names) - self.new_classes]
    rows = class_map.head_rows(names, known) if names else None
    return {"rows": rows, "new": self.new_classes}

  def measured_test_sets(self, rows: Sequence[Row]) -> tuple[str, ...]:
    """Returns the test sets of the matrix that were measured so far."""
    return tuple(t for t in self.test_sets if any(t in row for row in rows))

  def matrix(
    self, rows: Sequence[Row], reading: str, metric: str
  ) -> np.ndarray:
    """Returns the metric of each test set after each measured stage, [T, S]."""
    return metric_matrix(rows, reading, metric, self.measured_test_sets(rows))


def metric_matrix(
  rows: Sequence[Row], reading: str, metric: str, test_sets: Sequence[str]
) -> np.ndarray:
  """Returns R[t, s], the metric of test set t in row s; NaN: not measured."""
  matrix = np.full((len(test_sets), len(rows)), np.nan)
  for s, row in enumerate(rows):
    for t, test_set in enumerate(test_sets):
      if test_set in row:
        matrix[t, s] = row[test_set][reading][metric]
  return matrix


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Arrival:
  """What one stage of a scenario that learns adds.

  Attributes:
    name: As in Stage.
    learn: The new images.
    seen: The images of all stages so far, the new ones included.
    classes: Class ids of the new images.
    test_sets: As in Stage.
    steps: Steps of one epoch; None: as many as the images fill.
  """

  name: str
  learn: datasets.Subset
  seen: datasets.Subset
  classes: tuple[int, ...]
  test_sets: Mapping[str, TestSet] = dataclasses.field(default_factory=dict)
  steps: int | None = None


def learn_in_order(arrivals: Iterable[Arrival]) -> tuple[Stage, ...]:
  """Returns one stage with the goal "learn" for each arrival, in order."""
  stages, seen = [], {}
  for index, arrival in enumerate(arrivals):
    seen.update(dict.fromkeys(arrival.classes))
    train = {"learn": arrival.learn, "seen": arrival.seen}
    stages.append(
      Stage(
        index=index,
        goal="learn",
        train=train,
        test_sets=arrival.test_sets,
        classes={"learn": arrival.classes, "seen": tuple(seen)},
        name=arrival.name,
        epoch_steps=(
          {} if arrival.steps is None else dict.fromkeys(train, arrival.steps)
        ),
      )
    )
  return tuple(stages)


def check_tested(
  test: datasets.Split, class_names: Sequence[str], source: str
) -> None:
  """Raises ValueError for a class without a test image.

  Args:
    test: The test images.
    class_names: One name per class id.
    source: Name of the data set, for the error.
  """
  tested = set(test.labels.tolist())
  names = [n for c, n in enumerate(class_names) if c not in tested]
  if names:
    raise ValueError(
      f"{source!r} has no test image of the classes {names}; add some, or "
      "set holdout to test on a part of the training images."
    )


def check_source(source: datasets.Source) -> None:
  """Raises ValueError for a data set with a class without a test image."""
  check_tested(source.splits["test"], source.class_names, source.name)


def shown(names: Sequence[str]) -> str:
  """Returns names of classes as text, shortened where they are many."""
  if len(names) < 4:
    return ", ".join(names)
  return f"{names[0]} and {len(names) - 1} more"


def single(
  data: datasets.Source | datasets.Collection | datasets.Swap,
) -> datasets.Source:
  """Returns `data`, for a scenario that divides one data set into stages.

  Raises:
    ValueError: A collection of several, or a swap.
  """
  if isinstance(data, datasets.Source):
    return data
  if isinstance(data, datasets.Swap):
    raise ValueError(_no_swap(data))
  raise ValueError(
    f"{data.name!r} is a collection of {len(data.parts)} data sets; set "
    "scenario.name to 'joined' or 'domain_incremental', or take one data set."
  )


def several(
  data: datasets.Source | datasets.Collection | datasets.Swap,
) -> datasets.Collection:
  """Returns `data`, for a scenario that takes one data set after the other.

  Raises:
    ValueError: A single data set, or a swap.
  """
  if isinstance(data, datasets.Collection):
    return data
  if isinstance(data, datasets.Swap):
    raise ValueError(_no_swap(data))
  raise ValueError(
    f"{data.name!r} is one data set; this scenario takes several in order. "
    "Set dataset.name to 'collection', or scenario.name to "
    "'class_incremental'."
  )


def _no_swap(data: datasets.Swap) -> str:
  return (
    f"{data.name!r} says which classes to learn, to forget and to retain; set "
    "scenario.name to 'swapping', or take another dataset.name."
  )
