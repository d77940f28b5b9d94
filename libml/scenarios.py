"""Scenarios: in which order data arrive, and what is measured after each."""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from libml import datasets
from libml import metrics

# After each stage: probe -> reading -> figure -> value.
Row = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
  """What to measure after a stage.

  Attributes:
    subset: The images.
    classes: Ids that an answer may name; all of them in class-incremental
      evaluation, the task's own in task-incremental evaluation.
  """

  subset: datasets.Subset
  classes: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
  """One step of a scenario.

  Attributes:
    index: Number, from 0.
    goal: "learn" or "forget".
    train: Role -> data ("learn", "seen", "forget", "retain").
    probes: Name -> what to measure after the stage.
    classes: Role -> class ids.
  """

  index: int
  goal: str
  train: Mapping[str, datasets.Subset]
  probes: Mapping[str, Probe]
  classes: Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class Scenario:
  """An ordered list of stages.

  Attributes:
    stages: In order.
    num_classes: Columns of the head.
    figure: What of a problem's report the matrix shows ("accuracy").
    summarize: (rows so far, reading) -> named figures of the last stage.
    matrix: (rows, reading) -> accuracy matrix [T, T], NaN where not measured.
    description: Plain facts for the results.
    seeds: What its draws came from.
  """

  stages: tuple[Stage, ...]
  num_classes: int
  figure: str
  summarize: Callable[[Sequence[Row], str], dict[str, float]]
  matrix: Callable[[Sequence[Row], str], np.ndarray]
  description: Mapping[str, object]
  seeds: Mapping[str, int | None]


def class_order(num_classes: int, seed: int | None) -> tuple[int, ...]:
  """Returns the order in which classes arrive: natural, or drawn by a seed."""
  if seed is None:
    return tuple(range(num_classes))
  rng = np.random.Generator(np.random.Philox(seed))
  return tuple(int(c) for c in rng.permutation(num_classes))


def task_matrix(rows: Sequence[Row], reading: str) -> np.ndarray:
  """Returns R[i, j], accuracy on task i after stage j; NaN elsewhere."""
  matrix = np.full((len(rows), len(rows)), np.nan)
  for j, row in enumerate(rows):
    for i in range(j + 1):
      matrix[i, j] = row[f"task_{i}"][reading]["accuracy"]
  return matrix


def summarize_tasks(rows: Sequence[Row], reading: str) -> dict[str, float]:
  """Returns the class-incremental summary after the last row."""
  last = len(rows) - 1
  counts = [rows[-1][f"task_{i}"][reading]["count"] for i in range(len(rows))]
  return metrics.class_incremental(
    task_matrix(rows, reading), np.asarray(counts), last
  )


def class_incremental(
  source: datasets.Source,
  *,
  num_tasks: int,
  order_seed: int | None = None,
  reverse: bool = False,
  task_incremental: bool = False,
) -> Scenario:
  """Classes arrive in tasks of equal size; all seen tasks are measured.

  A class keeps its id, which is its column in the head, whatever the order.

  Args:
    source: The images.
    num_tasks: Number of tasks; must divide the number of classes.
    order_seed: Draws the class order; None keeps the natural one.
    reverse: Whether the tasks come last to first.
    task_incremental: Whether a test answer may name the task's classes only.

  Raises:
    ValueError: A number of tasks that does not divide the classes, or a
      class without a test image.
  """
  total = source.num_classes
  if num_tasks < 1 or total % num_tasks:
    divisors = [n for n in range(1, total + 1) if total % n == 0]
    raise ValueError(
      f"{total} classes of {source.name!r} do not divide into {num_tasks} "
      f"tasks; scenario.num_tasks must be one of {divisors}."
    )
  order = class_order(total, order_seed)
  size = total // num_tasks
  tasks = [order[size * i : size * (i + 1)] for i in range(num_tasks)]
  tasks = tasks[::-1] if reverse else tasks
  everything = tuple(range(total))
  train, test = source.splits["train"], source.splits["test"]
  untested = sorted(set(everything) - set(test.labels.tolist()))
  if untested:
    names = [source.class_names[c] for c in untested]
    raise ValueError(
      f"{source.name!r} has no test image of the classes {names}; add some, or "
      "set holdout to test on a part of the training images."
    )
  probes = {
    f"task_{i}": Probe(
      datasets.Subset.of(test, classes),
      classes if task_incremental else everything,
    )
    for i, classes in enumerate(tasks)
  }
  stages = []
  for i, classes in enumerate(tasks):
    seen = tuple(c for task in tasks[: i + 1] for c in task)
    stages.append(
      Stage(
        index=i,
        goal="learn",
        train={
          "learn": datasets.Subset.of(train, classes),
          "seen": datasets.Subset.of(train, seen),
        },
        probes={f"task_{j}": probes[f"task_{j}"] for j in range(i + 1)},
        classes={"learn": classes, "seen": seen},
      )
    )
  return Scenario(
    stages=tuple(stages),
    num_classes=total,
    figure="accuracy",
    summarize=summarize_tasks,
    matrix=task_matrix,
    description={
      "classes_per_task": [list(map(int, task)) for task in tasks],
      "evaluation": "task-incremental"
      if task_incremental
      else "class-incremental",
    },
    seeds={"class_order": order_seed},
  )


SCENARIOS = {"class_incremental": class_incremental}
