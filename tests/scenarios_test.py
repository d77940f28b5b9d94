"""Scenarios: what arrives when, and which metrics come of it."""

import dataclasses

import numpy as np
import pytest

from libml import datasets
from libml import scenarios
from libml.problems import PROBLEMS
from methods import METHODS
from models import MODELS


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


@pytest.mark.parametrize(
  ("classes", "first"),
  [
    (100, (68, 56, 78, 8, 23, 84, 90, 65, 74, 76)),
    (200, (168, 136, 51, 9, 183, 101, 171, 99, 42, 159)),
  ],
)
def test_seed_1993_draws_the_order_of_the_field(classes, first):
  order = scenarios.class_order(classes, 1993)
  assert order[:10] == first and sorted(order) == list(range(classes))


def test_natural_order_and_seeds_that_are_none():
  assert scenarios.class_order(4, None) == (0, 1, 2, 3)
  for seed in (-1, 2**32):
    with pytest.raises(ValueError, match=f"order_seed={seed} must be in 0 to"):
      scenarios.class_order(4, seed)


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
  names = [list(stage.test_sets) for stage in scenario.stages]
  assert names[2] == ["task_0", "task_1", "task_2"] and len(names[0]) == 1


def test_predictions_are_restricted_only_if_task_incremental(source):
  free = scenarios.class_incremental(source, num_tasks=3)
  told = scenarios.class_incremental(source, num_tasks=3, task_incremental=True)
  assert free.stages[1].test_sets["task_1"].classes == tuple(range(6))
  assert told.stages[1].test_sets["task_1"].classes == (2, 3)


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
  first = scenarios.summarize_tasks(rows[:1], "", "accuracy")
  assert "forgetting" not in first and "backward" not in first
  last = scenarios.summarize_tasks(rows, "", "accuracy")
  assert last["avg_acc"] == pytest.approx(0.6)
  assert last["forgetting"] == pytest.approx(0.4)
  assert last["backward"] == pytest.approx(-0.4)
  assert last["learning_acc"] == pytest.approx(0.8)
  assert last["seen_acc"] == pytest.approx((0.5 * 10 + 0.7 * 30) / 40)
  assert last["curve_mean_acc"] == pytest.approx((0.9 + 0.65) / 2)


def test_matrix_is_empty_where_a_task_was_not_yet_there():
  matrix = scenarios.task_matrix([_row(0.9), _row(0.5, 0.7)], "", "accuracy")
  np.testing.assert_array_equal(matrix, [[0.9, 0.5], [np.nan, 0.7]])


def test_a_class_without_a_test_image_is_named(source):
  test = source.splits["test"]
  kept = test.rows(np.flatnonzero(test.labels != 4))
  splits = {"train": source.splits["train"], "test": kept}
  cut = dataclasses.replace(source, splits=splits)
  with pytest.raises(ValueError, match=f"{source.class_names[4]!r}.*holdout"):
    scenarios.class_incremental(cut, num_tasks=3)


def _part(name, classes, per_class, seed=0):
  part = datasets.DATASETS["synthetic"](
    num_classes=classes, per_class=per_class, seed=seed
  )
  return dataclasses.replace(part, name=name)


@pytest.fixture(scope="module")
def unequal():
  """Returns data sets of 2, 3 and 1 classes and of 8, 15 and 6 images."""
  parts = (_part("a", 2, 4), _part("b", 3, 5, 1), _part("c", 1, 6, 2))
  return datasets.Collection("unequal", parts)


@pytest.fixture(scope="module")
def sessions():
  return datasets.DATASETS["synthetic_sessions"](
    num_classes=6, per_class=5, sessions=3
  )


@pytest.fixture(scope="module")
def domains():
  parts = (_part("real", 4, 5), _part("sketch", 4, 3, seed=1))
  return datasets.Collection("domains", parts)


def test_joined_parts_have_columns_of_their_own(unequal):
  scenario = scenarios.joined(unequal)
  assert scenario.num_classes == 6
  learned = [stage.classes["learn"] for stage in scenario.stages]
  assert learned == [(0, 1), (2, 3, 4), (5,)]
  assert [s.classes["seen"] for s in scenario.stages][1] == (0, 1, 2, 3, 4)
  for i, (stage, classes) in enumerate(
    zip(scenario.stages, learned, strict=True)
  ):
    for subset in (stage.train["learn"], stage.test_sets[f"task_{i}"].subset):
      (piece,) = subset.pieces
      theirs = piece.split.labels[piece.rows]
      np.testing.assert_array_equal(subset.labels, theirs + classes[0])
  assert [len(s.train["learn"]) for s in scenario.stages] == [8, 15, 6]
  assert [len(s.train["seen"]) for s in scenario.stages] == [8, 23, 29]
  assert list(scenario.stages[1].test_sets) == ["task_0", "task_1"]
  assert scenario.stages[1].name == "task 1: b"


def test_joined_order_moves_the_columns(unequal):
  turned = dataclasses.replace(unequal, parts=unequal.parts[::-1])
  stages = scenarios.joined(turned).stages
  assert [s.classes["learn"] for s in stages] == [(0,), (1, 2, 3), (4, 5)]


def test_joined_predictions_are_restricted_only_if_task_incremental(unequal):
  free = scenarios.joined(unequal).stages[2].test_sets
  told = scenarios.joined(unequal, task_incremental=True).stages[2].test_sets
  assert {p.classes for p in free.values()} == {(0, 1, 2, 3, 4, 5)}
  assert [p.classes for p in told.values()] == [(0, 1), (2, 3, 4), (5,)]


def test_domains_with_one_test_are_measured_on_it_alone(sessions):
  scenario = scenarios.domain_incremental(sessions)
  everything = (0, 1, 2, 3, 4, 5)
  for i, stage in enumerate(scenario.stages):
    assert stage.classes == {"learn": everything, "seen": everything}
    assert len(stage.train["learn"]) == 30
    assert len(stage.train["seen"]) == 30 * (i + 1)
    assert list(stage.test_sets) == ["test"]
    assert len(stage.test_sets["test"].subset) == 60
  trained = [s.train["learn"].pieces[0].split for s in scenario.stages]
  assert len(set(trained)) == 3


def test_augmented_test_stands_beside_the_proper_one(sessions):
  scenario = scenarios.domain_incremental(sessions, augmented_test=True)
  test_sets = scenario.stages[2].test_sets
  assert {n: t.augment for n, t in test_sets.items()} == {
    "test": False,
    "test_augmented": True,
  }
  assert test_sets["test"].subset is test_sets["test_augmented"].subset
  assert scenario.test_sets == ("test",)


def test_domains_with_tests_of_their_own_are_measured_so_far(domains):
  scenario = scenarios.domain_incremental(domains)
  names = [list(stage.test_sets) for stage in scenario.stages]
  assert names == [["task_0"], ["task_0", "task_1"]]
  test_set = scenario.stages[1].test_sets["task_1"]
  assert test_set.subset.pieces[0].split is domains.parts[1].splits["test"]
  with pytest.raises(ValueError, match="augmented_test=True.*share one test"):
    scenarios.domain_incremental(domains, augmented_test=True)


def test_domains_of_other_classes_are_refused(unequal):
  with pytest.raises(ValueError, match="'b' has other classes than 'a'"):
    scenarios.domain_incremental(unequal)


@pytest.mark.parametrize("name", ["joined", "domain_incremental"])
def test_one_data_set_is_no_collection(name, source):
  with pytest.raises(ValueError, match=r"'synthetic' is one.*'collection'"):
    scenarios.SCENARIOS[name](source)


@pytest.mark.parametrize("name", ["class_incremental", "gaussian"])
def test_a_collection_is_not_one_data_set(name, unequal):
  options = {"num_tasks": 2} if name == "class_incremental" else {}
  with pytest.raises(ValueError, match="'unequal' is a collection of 3"):
    scenarios.SCENARIOS[name](unequal, **options)


def gaussian(source, **changes):
  options = {"num_stages": 7, "width": 2.0, "measure_every": 3, **changes}
  return scenarios.gaussian(source, **options)


def test_gaussian_stages_have_the_images_of_their_classes(source):
  scenario = gaussian(source)
  seen = set()
  for stage in scenario.stages:
    classes = stage.classes["learn"]
    seen |= set(classes)
    assert classes and set(stage.train["learn"].labels) == set(classes)
    assert len(stage.train["learn"]) == 5 * len(classes)
    assert set(stage.classes["seen"]) == seen
    assert len(stage.train["seen"]) == 5 * len(seen)
  assert len({stage.classes["learn"] for stage in scenario.stages}) > 1


def test_gaussian_is_measured_now_and_then_and_at_the_end(source):
  test_sets = [list(stage.test_sets) for stage in gaussian(source).stages]
  assert test_sets == [[], [], ["test"], [], [], ["test"], ["test"]]


def test_gaussian_readings_differ_in_steps_and_classes(source):
  stream = gaussian(source, steps_per_stage=4)
  shipped = gaussian(source, steps_per_stage=None)
  assert stream.stages[0].epoch_steps == {"learn": 4, "seen": 4}
  assert shipped.stages[0].epoch_steps == {}
  readings = [s.description["reading"] for s in (stream, shipped)]
  assert readings == ["stream", "shipped"]
  counts = [sum(s.description["classes_per_stage"]) for s in (stream, shipped)]
  assert counts[0] < counts[1]


def test_gaussian_draws_by_its_seed(source):
  def classes(seed):
    stages = gaussian(source, schedule_seed=seed).stages
    return [stage.classes["learn"] for stage in stages]

  assert classes(1) == classes(1) != classes(2)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_stages": 0}, "num_stages=0 must be at least 1"),
    ({"steps_per_stage": 0}, "steps_per_stage=0 must be at least 1"),
    ({"measure_every": 0}, "measure_every=0 must be at least 1"),
    ({"width": 0.0}, "width=0.0 must be above 0"),
    ({"width": 0.1, "steps_per_stage": 7}, "width=0.1 leaves stages without"),
  ],
)
def test_gaussian_settings_without_sense_are_named(source, changes, message):
  with pytest.raises(ValueError, match=message):
    gaussian(source, **changes)


def test_one_test_set_has_no_forgetting():
  def row(proper, augmented):
    names = {"test": proper, "test_augmented": augmented}
    return {k: {"": {"accuracy": a, "count": 9}} for k, a in names.items()}

  found = scenarios.summarize_test(
    [row(0.5, 0.4), row(0.7, 0.2)], "", "accuracy"
  )
  assert found == {
    "avg_acc": pytest.approx(0.7),
    "curve_mean_acc": pytest.approx(0.6),
    "augmented_avg_acc": pytest.approx(0.2),
    "augmented_curve_mean_acc": pytest.approx(0.3),
  }


def test_matrix_of_one_test_set_is_one_row(sessions):
  scenario = scenarios.domain_incremental(sessions, augmented_test=True)
  rows = [
    {n: {"": {"accuracy": a}} for n in ("test", "test_augmented")}
    for a in (0.1, 0.2, 0.3)
  ]
  found = scenario.matrix(rows, "", "accuracy")
  np.testing.assert_array_equal(found, [[0.1, 0.2, 0.3]])


def _method(**options):
  model = MODELS["vit"](variant="smoke", image_size=8, num_classes=6)
  return METHODS["l2p"](
    model=model,
    problem=PROBLEMS["classification"](),
    num_classes=6,
    num_stages=3,
    **options,
  )


@pytest.mark.parametrize("name", ["unequal", "sessions"])
def test_a_head_is_handed_on_between_equal_tasks_only(name, source, request):
  builder = {"unequal": "joined", "sessions": "domain_incremental"}[name]
  scenario = scenarios.SCENARIOS[builder](request.getfixturevalue(name))
  _method().check(scenario)
  method = _method(transfer_head="all")
  method.check(scenarios.class_incremental(source, num_tasks=3))
  with pytest.raises(ValueError, match="transfer_head='all'.*stage 2 has "):
    method.check(scenario)
