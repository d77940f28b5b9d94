"""Domain-incremental learning: the same classes in one domain after another."""

from collections.abc import Mapping
from collections.abc import Sequence

from libml import datasets
from libml import problems
from libml.scenarios import metrics
from libml.scenarios import stage as stage_lib
from libml.scenarios import tasks


def summarize_test(
  rows: Sequence[stage_lib.Row], reading: str, metric: str
) -> dict[str, float]:
  """Returns the summary of a run whose stages share one test set.

  It has no forgetting, which needs a test set for each task.
  """
  test_sets = {"": "test", "augmented_": "test_augmented"}
  summary = {}
  for prefix, test_set in test_sets.items():
    if test_set in rows[-1]:
      curve = stage_lib.metric_matrix(rows, reading, metric, [test_set])[0]
      found = metrics.single_test(curve, problems.short(metric))
      summary.update({f"{prefix}{name}": v for name, v in found.items()})
  return summary


def domain_incremental(
  source: datasets.Collection, *, augmented_test: bool = False
) -> stage_lib.Scenario:
  """Domains of the same classes arrive one after the other.

  If all domains share one test split (CORe50: Lomonaco and Maltoni, 2017), it
  is the test set "test" of every stage. Otherwise each stage is measured on the
  test splits of all domains so far.

  Args:
    source: The domains, in order.
    augmented_test: Whether to measure the shared test split a second time, as
      the L2P code does, through the training chain ("test_augmented"). Here an
      image's position seeds its crop, which is the same after each stage; the
      L2P code draws a new crop at each pass.

  Raises:
    ValueError: Domains whose classes differ, a class or domain without a test
      image, `augmented_test` without a shared test split, or a single data set.
  """
  parts = stage_lib.several(source).parts
  _check_domains(parts)
  names = parts[0].class_names
  everything = tuple(range(len(names)))
  shared = len({part.splits["test"] for part in parts}) == 1
  if augmented_test and not shared:
    raise ValueError(
      "scenario.augmented_test=True needs domains that share one test split, "
      "but each of these has its own; set scenario.augmented_test=False."
    )
  description = {"order": [p.name for p in parts], "classes": len(names)}
  if not shared:
    tests = [datasets.Subset.of(part.splits["test"]) for part in parts]
    return tasks.tested_on_all(
      _arrivals(parts),
      [stage_lib.TestSet(test, everything) for test in tests],
      num_classes=len(names),
      description={**description, "evaluation": "on each domain's test"},
      seeds={},
    )
  test = parts[0].splits["test"]
  stage_lib.check_tested(test, names, source.name)
  subset = datasets.Subset.of(test)
  test_sets = {"test": stage_lib.TestSet(subset, everything)}
  if augmented_test:
    test_sets["test_augmented"] = stage_lib.TestSet(
      subset, everything, augment=True
    )
  return stage_lib.Scenario(
    stages=stage_lib.learn_in_order(_arrivals(parts, test_sets)),
    num_classes=len(names),
    summarize=summarize_test,
    test_sets=("test",),
    description={**description, "evaluation": "on one test for all domains"},
    seeds={},
  )


def _check_domains(parts: Sequence[datasets.Source]) -> None:
  """Raises ValueError if classes differ, or a domain has no test image."""
  names = parts[0].class_names
  for part in parts:
    if part.class_names != names:
      raise ValueError(
        f"Domain {part.name!r} has other classes than {parts[0].name!r}: "
        f"{list(part.class_names[:3])}... ({part.num_classes}), not "
        f"{list(names[:3])}... ({len(names)}). Take scenario.name='joined' "
        "for data sets with classes of their own."
      )
    if not len(part.splits["test"]):
      raise ValueError(
        f"Domain {part.name!r} has no test image; add some, or set holdout to "
        "test on a part of the training images."
      )


def _arrivals(
  parts: Sequence[datasets.Source],
  test_sets: Mapping[str, stage_lib.TestSet] | None = None,
) -> list[stage_lib.Arrival]:
  """Returns one arrival per domain, all with the same `test_sets`."""
  arrivals, seen = [], datasets.Subset(())
  for i, part in enumerate(parts):
    learn = datasets.Subset.of(part.splits["train"])
    seen += learn
    arrivals.append(
      stage_lib.Arrival(
        name=f"task {i}: {part.name}",
        learn=learn,
        seen=seen,
        classes=tuple(range(part.num_classes)),
        test_sets=test_sets or {},
      )
    )
  return arrivals
