"""Orders of learning and forgetting: what stages train on and what counts."""

import logging

import numpy as np
import pytest

from libml import datasets
from libml import scenarios
from libml.audit import audits
from libml.scenarios import metrics

# Columns: 0, 1 and 2 to retain, 3 to forget, 4 in no set, 5 and 6 new.
KNOWN = {"name": "synthetic", "num_classes": 7, "per_class": 10}
COLUMNS = {"learn": (5, 6), "forget": (3,), "retain": (0, 1, 2)}


@pytest.fixture(scope="module")
def source():
  return datasets.DATASETS["swap_classes"](
    known=KNOWN, learn=(5, 6), forget=(3,), retain=(0, 1, 2)
  )


def swap(source, order="lf", **options):
  return scenarios.SCENARIOS["swapping"](
    source, order=order, **{"ratio": None, **options}
  )


def labels(subset):
  return set(subset.labels.tolist())


def images(subset):
  return {(id(p.split), int(r)) for p in subset.pieces for r in p.rows}


GOALS = {
  "lf": ["learn", "forget"],
  "fl": ["forget", "learn"],
  "lfl": ["learn", "forget", "learn"],
  "flf": ["forget", "learn", "forget"],
  "joint": ["swap"],
  "ffll": ["forget", "forget", "learn", "learn"],
  "l": ["learn"],
}


@pytest.mark.parametrize("order", GOALS)
def test_a_word_gives_the_stages(source, order):
  found = swap(source, order)
  assert [stage.goal for stage in found.stages] == GOALS[order]
  assert [stage.index for stage in found.stages] == list(
    range(len(GOALS[order]))
  )
  assert found.description["order"] == order
  for stage in found.stages:
    told = ("learn", "forget") if stage.goal == "swap" else (stage.goal,)
    assert all(f" {word} " in stage.name for word in told)
    assert stage.classes["new"] == (5, 6)
    assert stage.classes["known"] == tuple(range(7))
    for role, subset in stage.train.items():
      assert labels(subset) == set(stage.classes[role])


# Stage by stage: the roles, and whether what is to learn is retained.
TRAIN = {
  "lf": [("learn", False), ("forget", True)],
  "fl": [("forget", False), ("learn forget", False)],
  "lfl": [("learn", False), ("forget", True), ("learn forget", False)],
  "flf": [("forget", False), ("learn forget", False), ("forget", True)],
  "joint": [("learn forget", False)],
}


@pytest.mark.parametrize("order", TRAIN)
def test_what_each_stage_trains_on(source, order):
  stages = swap(source, order).stages
  for stage, (roles, learned) in zip(stages, TRAIN[order], strict=True):
    assert set(stage.train) == {"retain", *roles.split()}
    retained = COLUMNS["retain"] + COLUMNS["learn"] * learned
    assert stage.classes["retain"] == retained
    assert len(stage.train["retain"]) == 10 * len(retained)
    for role in roles.split():
      assert labels(stage.train[role]) == set(COLUMNS[role])
  # One sample serves all stages.
  forgets = [s.train["forget"] for s in stages if "forget" in s.train]
  assert len({frozenset(images(subset)) for subset in forgets}) == 1


def test_columns_and_label_maps(source):
  found = swap(source, spare=3)
  assert found.num_classes == 10 and found.new_classes == 5
  assert found.class_names[:7] == (*source.known, *source.learn.class_names)
  assert found.class_names[7:] == ("spare 0", "spare 1", "spare 2")
  whole = datasets.DATASETS["synthetic"](num_classes=7, per_class=10)
  for role, ids in COLUMNS.items():
    (piece,) = found.before[role].subset.pieces
    for label in ids:
      ours = piece.split.images[piece.rows[piece.labels == label]]
      theirs = whole.splits["test"].select([label], 7).images
      np.testing.assert_array_equal(ours, theirs)
  # All columns may be predicted, spare ones too.
  assert all(
    test_set.classes == tuple(range(10)) for test_set in found.before.values()
  )


def test_class_that_comes_before_keeps_its_column():
  # The first class is new: old ones move one to the front, as in the weights.
  source = datasets.DATASETS["swap_classes"](
    known=KNOWN, learn=(0,), forget=(1,)
  )
  found = swap(source)
  assert labels(found.stages[0].train["learn"]) == {6}
  assert labels(found.stages[1].train["forget"]) == {0}
  assert labels(found.stages[0].train["retain"]) == {1, 2, 3, 4, 5}
  whole = datasets.DATASETS["synthetic"](num_classes=7, per_class=10)
  (piece,) = found.stages[0].train["learn"].pieces
  ours = piece.split.images[piece.rows]
  theirs = whole.splits["train"].select([0], 7).images
  np.testing.assert_array_equal(ours, theirs)


def test_sets_are_of_test_images_and_of_training_images(source):
  found = swap(source, "flf", ratio=0.5)
  assert found.test_sets == ("learn", "forget", "retain")
  for rows in (found.before, *(stage.test_sets for stage in found.stages)):
    assert list(rows) == [
      *("learn", "forget", "retain"),
      *("train_learn", "train_forget", "train_retain"),
    ]
    for name, test_set in rows.items():
      assert test_set.trained == name.startswith("train_")
      assert test_set.problem is None and not test_set.augment
  for role in COLUMNS:
    trained = images(found.before[f"train_{role}"].subset)
    assert not trained & images(found.before[role].subset)
    seen = [
      images(stage.train[role]) for stage in found.stages if role in stage.train
    ]
    assert trained == set.intersection(*seen)


def test_samples(source):
  found = swap(source, ratio=0.5)
  learn, forget = found.stages
  assert len(learn.train["learn"]) == 20  # all of what is to be learned
  assert len(forget.train["forget"]) == 5
  assert len(learn.train["retain"]) == 15
  assert len(forget.train["retain"]) == 15 + 20
  assert found.description["images"] == [
    {"retain": 15, "learn": 20},
    {"retain": 35, "forget": 5},
  ]
  few = swap(source, ratio=0.5, shots=2, learn_shots=3)
  counts = [
    len(few.stages[i].train[r]) for i, r in ((0, "learn"), (0, "retain"))
  ]
  assert counts == [6, 6] and len(few.stages[1].train["forget"]) == 2
  assert few.description["sample"]["learn"].startswith("3 images a class")
  again, other = swap(source, ratio=0.5), swap(source, ratio=0.5, sample_seed=2)
  for role in ("forget", "retain"):
    drawn = images(forget.train[role])
    assert drawn == images(again.stages[1].train[role])
    assert drawn != images(other.stages[1].train[role])
  assert other.seeds == {"sample": 2}


def test_known_classes_without_images_are_named(source, caplog):
  with caplog.at_level(logging.WARNING, "palimpsest"):
    swap(source)
  (record,) = caplog.records
  assert "1 classes of the head are in none of the three sets" in record.message
  assert record.message.endswith(f": {source.known[4]}.")
  caplog.clear()
  swap(datasets.DATASETS["swap_classes"](known=KNOWN, learn=(6,), forget=(0,)))
  assert not caplog.records


def row(learn, forget, retain):
  values = {"learn": learn, "forget": forget, "retain": retain}
  tests = {k: {"": {"accuracy": v, "count": 4}} for k, v in values.items()}
  # What is trained on is known somewhat better.
  trained = {
    f"train_{k}": {"": {"accuracy": v + 0.01, "count": 4}}
    for k, v in values.items()
  }
  return {**tests, **trained}


ROWS = (row(0.0, 0.9, 0.8), row(0.6, 0.8, 0.7), row(0.5, 0.1, 0.75))


def test_summary_by_hand(source):
  told = swap(source, "lf").summarize(ROWS, "", "accuracy")
  assert told["acc_learn"] == 0.5 and told["acc_forget"] == 0.1
  assert told["acc_retain"] == 0.75 and told["acc_train_forget"] == 0.11
  assert told["drop_forget"] == pytest.approx(0.8)
  assert told["drop_retain"] == pytest.approx(0.05)
  assert told["h_mean"] == pytest.approx(2 * 0.75 * 0.8 / 1.55)
  # Since the model before the stage, which had lost a tenth already.
  assert told["h_mean_previous"] == pytest.approx(2 * 0.75 * 0.7 / 1.45)
  assert told["swap_mean"] == pytest.approx(3 / (1 / 0.75 + 1 / 0.8 + 1 / 0.5))


@pytest.mark.parametrize(
  ("order", "told"),
  [
    ("lf", [False, True]),
    ("fl", [True, False]),
    ("ff", [True, True]),
  ],
)
def test_drop_since_the_last_stage_is_of_forgetting_alone(source, order, told):
  summarize = swap(source, order).summarize
  found = [
    "h_mean_previous" in summarize(ROWS[: i + 2], "", "accuracy")
    for i in range(len(order))
  ]
  assert found == told
  assert "h_mean_previous" in swap(source, "joint").summarize(
    ROWS[:2], "", "accuracy"
  )


def test_first_row_has_accuracies_alone(source):
  told = swap(source).summarize(ROWS[:1], "", "accuracy")
  assert set(told) == {
    f"acc_{prefix}{name}" for prefix in ("", "train_") for name in COLUMNS
  }


def test_nothing_learned_or_forgotten_counts_nothing(source):
  same = (ROWS[0], ROWS[0])
  told = swap(source, "f").summarize(same, "", "accuracy")
  assert told["h_mean"] == told["swap_mean"] == 0
  assert metrics.h_mean(0.5, 0.8, 0.0) == 0


def test_audits_see_each_image_once_and_no_trained_one_as_test(source):
  stages = swap(source, "flf").stages
  found = audits._images(stages[2], stages[2].test_sets, stages[:2], seed=0)
  counts = {role: len(subset) for role, subset in found.items()}
  assert counts["forget"] == 10  # three stages have them
  assert counts["forget_test"] == len(stages[0].test_sets["forget"].subset)
  trained = images(stages[2].train["retain"])
  assert not images(found["retain_test"]) & trained
  assert labels(found["retain_test"]) == {0, 1, 2, 5, 6}
