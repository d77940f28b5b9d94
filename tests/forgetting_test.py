"""Requests to forget: who is forgotten, who is kept, what is measured."""

import dataclasses

import numpy as np
import pytest

from libml import datasets
from libml import scenarios
from libml.datasets import embedded
from libml.scenarios import metrics


@pytest.fixture(scope="module")
def hundred():
  return embedded.synthetic(num_classes=100, per_class=10, test_per_class=2)


@pytest.fixture(scope="module")
def ten():
  return embedded.synthetic(num_classes=10, per_class=20)


def forget(source, **options):
  return scenarios.forgetting(source, **options)


def classes(subset):
  return set(subset.labels.tolist())


def rows(subset):
  return {(id(p.split), int(r)) for p in subset.pieces for r in p.rows}


# What is there to train on.


def test_requests_take_ids_and_names(ten):
  named = dataclasses.replace(ten, class_names=tuple("abcdefghij"))
  scenario = forget(named, requests=((3,), ("f", "h")), ratio=None)
  assert [s.classes["forget"] for s in scenario.stages] == [(3,), (5, 7)]
  first, second = scenario.stages
  assert classes(first.train["retain"]) == set(range(10)) - {3}
  assert classes(second.train["retain"]) == set(range(10)) - {3, 5, 7}
  assert second.classes["old"] == (3,)
  assert [s.name for s in scenario.stages] == [
    "request 0: d",
    "request 1: f, h",
  ]


def test_what_a_list_does_not_retain_is_missing(ten):
  scenario = forget(ten, requests=((0,), (1,)), retain=(2, 3), ratio=None)
  first, second = scenario.stages
  # A class that a later request forgets is still to be kept now.
  assert classes(first.train["retain"]) == {1, 2, 3}
  assert classes(second.train["retain"]) == {2, 3}
  assert first.classes["missing"] == (4, 5, 6, 7, 8, 9)


def test_a_ratio_takes_its_share_of_all_images(ten):
  scenario = forget(ten, requests=((0,), (1,)), ratio=0.25)
  first, second = scenario.stages
  images = len(first.train["forget"]) + len(first.train["retain"])
  assert images == int(0.25 * 200)
  # One draw serves all requests: what is retained later was there before.
  assert rows(second.train["retain"]) < rows(first.train["retain"])
  assert rows(second.train["forget"]) < rows(first.train["retain"])


def test_a_redrawn_ratio_takes_its_share_of_each_part_anew(ten):
  scenario = forget(ten, requests=((0,), (1,)), ratio=0.25, redraw=True)
  first, second = scenario.stages
  sizes = [
    [len(s.train[r]) for r in ("forget", "retain")] for s in (first, second)
  ]
  assert sizes == [[5, 45], [5, 40]]
  assert not rows(second.train["retain"]) <= rows(first.train["retain"])


def test_shots_are_of_each_class(ten):
  scenario = forget(ten, requests=((0, 1),), shots=4)
  (stage,) = scenario.stages
  for subset in stage.train.values():
    assert set(np.bincount(subset.labels)[list(classes(subset))]) == {4}


def test_another_seed_draws_others(ten):
  a, b, c = (
    rows(forget(ten, requests=((0,),), sample_seed=s).stages[0].train["retain"])
    for s in (1, 1, 2)
  )
  assert a == b != c


# What is measured.


def test_every_part_is_measured_before_and_after(ten):
  others = datasets.Split(
    ten.splits["test"].images[:4], np.array([10, 10, 11, 11], np.int32)
  )
  source = dataclasses.replace(ten, others=others, other_names=("x", "y"))
  scenario = forget(source, requests=((0,), (1,)), missing=2, ratio=None)
  parts = {"request_0", "request_1", "kept", "missing", "others"}
  assert set(scenario.before) == parts
  assert all(set(stage.test_sets) == parts for stage in scenario.stages)
  assert scenario.num_classes == 12
  # The further classes may be named only where their images are asked for.
  assert scenario.before["kept"].classes == tuple(range(10))
  assert scenario.before["others"].classes == tuple(range(12))
  seen = [classes(scenario.before[p].subset) for p in sorted(parts)]
  assert sum(map(len, seen)) == 12 and set().union(*seen) == set(range(12))


def row(**accuracies):
  """Returns a row of metrics; counts differ from test set to test set."""
  counts = {"request_0": 10, "request_1": 30, "kept": 40, "missing": 20}
  return {
    test_set: {"": {"accuracy": value, "count": counts[test_set]}}
    for test_set, value in accuracies.items()
  }


def test_summary_of_each_request():
  table = [
    row(request_0=0.9, request_1=0.8, kept=0.7, missing=0.5),
    row(request_0=0.1, request_1=0.6, kept=0.8, missing=0.4),
    row(request_0=0.2, request_1=0.3, kept=0.6, missing=0.2),
  ]
  before = scenarios.summarize_forgetting(table[:1], "", "accuracy")
  everything = (0.9 * 10 + 0.8 * 30 + 0.7 * 40 + 0.5 * 20) / 100
  assert before["acc_retain"] == pytest.approx(everything)
  first = scenarios.summarize_forgetting(table[:2], "", "accuracy")
  retain = (0.6 * 30 + 0.8 * 40 + 0.4 * 20) / 90
  assert first["acc_forget"] == pytest.approx(0.1)
  assert first["acc_retain"] == pytest.approx(retain)
  assert first["drop_forget"] == pytest.approx(0.8)
  assert first["h_mean"] == pytest.approx(2 * retain * 0.8 / (retain + 0.8))
  assert "acc_old" not in first
  second = scenarios.summarize_forgetting(table, "", "accuracy")
  assert second["acc_old"] == pytest.approx(0.2)
  assert second["acc_retain"] == pytest.approx((0.6 * 40 + 0.2 * 20) / 60)
  assert second["acc_retain_trained"] == pytest.approx(0.6)
  assert second["acc_missing"] == pytest.approx(0.2)
  was = (0.7 * 40 + 0.5 * 20) / 60
  now = second["acc_retain"]
  assert second["drop_retain"] == pytest.approx(was - now)
  # From the pretrained model, and from the model before this request.
  assert second["h_mean"] == pytest.approx(metrics.h_mean(now, 0.5))
  assert second["h_mean_previous"] == pytest.approx(metrics.h_mean(now, 0.3))


def test_h_mean_of_published_figures():
  assert metrics.h_mean(71.16, 70.88) == pytest.approx(71.02, abs=0.005)
  assert metrics.h_mean(7.75, 43.77 - 81.11) == 0


# Bad input.


@pytest.mark.parametrize(
  "options, message",
  [
    ({"requests": ()}, "requests is empty"),
    ({"requests": ((1,), ())}, "Request 1 .*is empty"),
    ({"requests": ((11,),)}, "11 of request 0 does not exist.*0 to 9"),
    ({"requests": (("cat",),)}, "'cat' of request 0 does not exist"),
    ({"requests": ((1, 1),)}, "request 0 names a class twice"),
    ({"requests": ((1,), (2, 1))}, r"Request 1 .* names the classes \[1\]"),
    ({"requests": (tuple(range(10)),)}, "forget all 10 classes"),
    ({"requests": ((1,),), "retain": (1, 2)}, r"\[1\] are both in a request"),
    ({"requests": ((1,),), "retain": ()}, "retain is empty"),
    ({"requests": ((1,),), "retain": (2,), "missing": 1}, "missing=0"),
    ({"requests": ((1,),), "missing": 9}, "missing=9 must be 0 to 8"),
    ({"requests": ((1,),), "missing_from": "top"}, "'start' or 'end'"),
    ({"requests": ((1,),), "shots": 21}, "fewer than the 21 asked for"),
    ({"requests": ((1,),), "ratio": 1.5}, "ratio=1.5 must be above 0"),
    ({"requests": ((1,),), "ratio": 0.02}, "draws no image of the classes"),
    ({"num_requests": 5, "classes_per_request": 2}, "10 of 10 classes"),
    ({"num_requests": 0}, "must be 1 or more"),
    ({"order": (0, 1, 2)}, "must hold each class id 0 to 9 once"),
  ],
)
def test_bad_requests_are_refused(ten, options, message):
  with pytest.raises(ValueError, match=message):
    forget(ten, **options)


def test_a_collection_is_refused():
  sessions = embedded.synthetic_sessions()
  with pytest.raises(ValueError, match="is a collection"):
    forget(sessions, requests=((0,),))
