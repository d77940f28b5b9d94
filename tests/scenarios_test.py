"""Scenarios: what arrives when, and which figures come of it."""

import dataclasses

import numpy as np
import pytest

from libml import datasets
from libml import scenarios


@pytest.fixture(scope="module")
def source():
  return datasets.DATASETS["synthetic"](num_classes=6, per_class=5)


def test_tasks_partition_the_classes_and_keep_their_ids(source):
  scenario = scenarios.class_incremental(source, num_tasks=3, order_seed=1)
  learned = [stage.classes["learn"] for stage in scenario.stages]
  assert sorted(c for task in learned for c in task) == list(range(6))
  assert learned != [(0, 1), (2, 3), (4, 5)]
  for stage, classes in zip(scenario.stages, learned, strict=True):
    assert set(stage.train["learn"].labels) == set(classes)
    assert len(stage.train["learn"]) == 10


def test_the_same_seed_draws_the_same_order(source):
  orders = [
    [s.classes["learn"] for s in scenarios.class_incremental(
      source, num_tasks=3, order_seed=seed).stages]
    for seed in (7, 7, 8)
  ]  # fmt: skip
  assert orders[0] == orders[1] != orders[2]


def test_seen_grows_and_ends_with_everything(source):
  scenario = scenarios.class_incremental(source, num_tasks=3)
  sizes = [len(stage.train["seen"]) for stage in scenario.stages]
  assert sizes == [10, 20, 30]
  assert scenario.stages[-1].classes["seen"] == (0, 1, 2, 3, 4, 5)


def test_reverse_starts_with_the_last_task(source):
  scenario = scenarios.class_incremental(source, num_tasks=3, reverse=True)
  assert scenario.stages[0].classes["learn"] == (4, 5)


def test_each_stage_is_measured_on_all_tasks_so_far(source):
  scenario = scenarios.class_incremental(source, num_tasks=3)
  names = [list(stage.probes) for stage in scenario.stages]
  assert names[2] == ["task_0", "task_1", "task_2"] and len(names[0]) == 1


def test_answers_are_restricted_only_if_task_incremental(source):
  free = scenarios.class_incremental(source, num_tasks=3)
  told = scenarios.class_incremental(source, num_tasks=3, task_incremental=True)
  assert free.stages[1].probes["task_1"].classes == tuple(range(6))
  assert told.stages[1].probes["task_1"].classes == (2, 3)


def test_a_number_of_tasks_that_does_not_divide_is_refused(source):
  with pytest.raises(ValueError, match=r"6 classes .* 4 tasks.*\[1, 2, 3, 6\]"):
    scenarios.class_incremental(source, num_tasks=4)


def _row(*accuracies, counts=(10, 30)):
  return {
    f"task_{i}": {"": {"accuracy": a, "loss": 0.0, "count": counts[i]}}
    for i, a in enumerate(accuracies)
  }


def test_summary_of_two_tasks_by_hand():
  rows = [_row(0.9), _row(0.5, 0.7)]
  first = scenarios.summarize_tasks(rows[:1], "")
  assert "forgetting" not in first and "backward" not in first
  last = scenarios.summarize_tasks(rows, "")
  assert last["avg_acc"] == pytest.approx(0.6)
  assert last["forgetting"] == pytest.approx(0.4)
  assert last["backward"] == pytest.approx(-0.4)
  assert last["learning_acc"] == pytest.approx(0.8)
  assert last["seen_acc"] == pytest.approx((0.5 * 10 + 0.7 * 30) / 40)
  assert last["curve_mean_acc"] == pytest.approx((0.9 + 0.65) / 2)


def test_matrix_is_empty_where_a_task_was_not_yet_there():
  matrix = scenarios.task_matrix([_row(0.9), _row(0.5, 0.7)], "")
  np.testing.assert_array_equal(matrix, [[0.9, 0.5], [np.nan, 0.7]])


def test_a_class_without_a_test_image_is_named(source):
  test = source.splits["test"]
  kept = test.rows(np.flatnonzero(test.labels != 4))
  splits = {"train": source.splits["train"], "test": kept}
  cut = dataclasses.replace(source, splits=splits)
  with pytest.raises(ValueError, match=f"{source.class_names[4]!r}.*holdout"):
    scenarios.class_incremental(cut, num_tasks=3)
