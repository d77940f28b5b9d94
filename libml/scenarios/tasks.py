"""Tasks of disjoint classes: parts of one data set, or several joined."""

import dataclasses
import logging
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from libml import datasets
from libml import problems
from libml.scenarios import metrics
from libml.scenarios import stage as stage_lib

_LOG = logging.getLogger("palimpsest")


def class_order(num_classes: int, seed: int | None) -> tuple[int, ...]:
  """Returns the order in which classes arrive: natural, or drawn by a seed.

  Seeds draw from NumPy's legacy generator, as other code does: seed 1993 gives
  the class order of PyCIL, PILOT and LibContinual.

  Args:
    num_classes: How many classes there are.
    seed: 0 to 2**32 - 1; None: natural order.

  Raises:
    ValueError: A seed out of range.
  """
  if seed is None:
    return tuple(range(num_classes))
  if not 0 <= seed < 2**32:
    raise ValueError(
      f"scenario.order_seed={seed} must be in 0 to 2**32 - 1, or None for the "
      "natural order."
    )
  order = np.random.RandomState(seed).permutation(num_classes)
  return tuple(int(c) for c in order)


def task_matrix(
  rows: Sequence[stage_lib.Row], reading: str, metric: str
) -> np.ndarray:
  """Returns R[i, j], the metric of task i after stage j; NaN elsewhere."""
  test_sets = [f"task_{i}" for i in range(len(rows))]
  return stage_lib.metric_matrix(rows, reading, metric, test_sets)


def summarize_tasks(
  rows: Sequence[stage_lib.Row], reading: str, metric: str
) -> dict[str, float]:
  """Returns the class-incremental summary after the last row."""
  last = len(rows) - 1
  counts = [rows[-1][f"task_{i}"][reading]["count"] for i in range(len(rows))]
  matrix = task_matrix(rows, reading, metric)
  return metrics.class_incremental(
    matrix, np.asarray(counts), last, problems.short(metric)
  )


def tested_on_all(
  arrivals: Sequence[stage_lib.Arrival],
  tests: Sequence[stage_lib.TestSet],
  *,
  num_classes: int,
  description: Mapping[str, object],
  seeds: Mapping[str, int | None],
  class_names: Sequence[str] = (),
) -> stage_lib.Scenario:
  """Returns a scenario that measures the test sets of all stages so far.

  Args:
    arrivals: What each stage adds; their `test_sets` are set here.
    tests: The test set of each stage's own images.
    num_classes: Columns of the head.
    description: As in Scenario.
    seeds: As in Scenario.
    class_names: As in Scenario.
  """
  test_sets = [(f"task_{i}", test) for i, test in enumerate(tests)]
  return stage_lib.Scenario(
    stages=stage_lib.learn_in_order(
      dataclasses.replace(arrival, test_sets=dict(test_sets[: i + 1]))
      for i, arrival in enumerate(arrivals)
    ),
    num_classes=num_classes,
    summarize=summarize_tasks,
    test_sets=tuple(name for name, _ in test_sets),
    description=description,
    seeds=seeds,
    class_names=tuple(class_names),
  )


def class_incremental(
  source: datasets.Source,
  *,
  num_tasks: int | None,
  order_seed: int | None = None,
  reverse: bool = False,
  task_incremental: bool = False,
) -> stage_lib.Scenario:
  """Classes arrive in tasks of equal size; all tasks so far are measured.

  A class keeps its id, which is its column in the head, whatever the order.

  Args:
    source: The images.
    num_tasks: Number of tasks; must divide the number of classes. None: the
      largest up to 10 that leaves each task two classes or more.
    order_seed: Draws the class order; None keeps the natural one.
    reverse: Whether the tasks come last to first.
    task_incremental: Whether a prediction may name the task's classes only.

  Raises:
    ValueError: A number of tasks that does not divide the classes, a class
      without a test image, or a collection.
  """
  source = stage_lib.single(source)
  total = source.num_classes
  num_tasks = _most_tasks(total) if num_tasks is None else num_tasks
  _check_divides(num_tasks, source)
  train, test = source.splits["train"], source.splits["test"]
  stage_lib.check_source(source)
  order = class_order(total, order_seed)
  size = total // num_tasks
  tasks = [order[size * i : size * (i + 1)] for i in range(num_tasks)]
  tasks = tasks[::-1] if reverse else tasks
  everything = tuple(range(total))
  arrivals, seen = [], ()
  for i, classes in enumerate(tasks):
    seen += classes
    arrivals.append(
      stage_lib.Arrival(
        name=f"task {i}",
        learn=datasets.Subset.of(train, classes),
        seen=datasets.Subset.of(train, seen),
        classes=classes,
      )
    )
  return tested_on_all(
    arrivals,
    [
      stage_lib.TestSet(
        datasets.Subset.of(test, classes),
        classes if task_incremental else everything,
      )
      for classes in tasks
    ],
    num_classes=total,
    description={
      "classes_per_task": [list(map(int, task)) for task in tasks],
      "evaluation": _evaluation(task_incremental),
    },
    seeds={"class_order": order_seed},
    class_names=source.class_names,
  )


def _most_tasks(total: int) -> int:
  """Returns the most tasks of equal size, up to 10, of two classes or more."""
  fitting = [n for n in range(2, 11) if total % n == 0 and total // n >= 2]
  most = max(fitting, default=1)
  _LOG.info("%d classes in %d tasks (scenario.num_tasks)", total, most)
  return most


def _check_divides(num_tasks: int, source: datasets.Source) -> None:
  total = source.num_classes
  if num_tasks < 1 or total % num_tasks:
    divisors = [n for n in range(1, total + 1) if total % n == 0]
    raise ValueError(
      f"{total} classes of {source.name!r} do not divide into {num_tasks} "
      f"tasks; scenario.num_tasks must be one of {divisors}."
    )


def joined(
  source: datasets.Collection, *, task_incremental: bool = False
) -> stage_lib.Scenario:
  """Data sets arrive one after the other, each with its own classes.

  Class ids of a data set follow those of the data set before it, so the order
  decides which column of the head a class has. Data sets may have any number of
  classes and images (5-datasets: Ebrahimi et al., 2020).

  Args:
    source: The data sets, in order.
    task_incremental: Whether a prediction may name the task's classes only.

  Raises:
    ValueError: A class without a test image, or a single data set.
  """
  parts = stage_lib.several(source).parts
  total = sum(part.num_classes for part in parts)
  everything = tuple(range(total))
  arrivals, tests, first = [], [], 0
  seen = datasets.Subset(())
  for i, part in enumerate(parts):
    stage_lib.check_tested(part.splits["test"], part.class_names, part.name)
    classes = everything[first : first + part.num_classes]
    first += part.num_classes
    learn, test = (
      datasets.Subset.of(part.splits[key], label_map=dict(enumerate(classes)))
      for key in ("train", "test")
    )
    seen += learn
    arrivals.append(
      stage_lib.Arrival(
        name=f"task {i}: {part.name}", learn=learn, seen=seen, classes=classes
      )
    )
    allowed = classes if task_incremental else everything
    tests.append(stage_lib.TestSet(test, allowed))
  return tested_on_all(
    arrivals,
    tests,
    num_classes=total,
    description={
      "order": [part.name for part in parts],
      "classes_per_task": [list(a.classes) for a in arrivals],
      "evaluation": _evaluation(task_incremental),
    },
    seeds={},
  )


def _evaluation(task_incremental: bool) -> str:
  return "task-incremental" if task_incremental else "class-incremental"
