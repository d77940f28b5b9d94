"""Audits see through a model that hides, and pass one that never saw."""

import dataclasses
import io
import json
import types

import audit_toy
import jax
import numpy as np
import pytest
from rich import console

from libml import scenarios
from libml import trees
from libml.audit import audits
from libml.audit import relearning
from libml.pipeline import stage_data
from libml.results import audit_table

_OPTIONS = {"stages": "last", "shots": 8, "lr": 3e-3, "max_steps": 40}


@pytest.fixture(scope="module")
def world():
  """Returns the task, its networks trained."""
  return audit_toy.world()


@pytest.fixture(scope="module")
def hidden(world):
  """Returns what the audits find in the model whose head hides the classes."""
  params = world.hidden()
  before = jax.device_get(params)
  asked = audits.Audits(
    first=world.first, retrained=world.retrained, **_OPTIONS
  )
  found = world.ask(asked, params)
  jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(params))
  return found


@pytest.fixture(scope="module")
def retrained(world):
  """Returns what they find in the retrained model, of which they do not know.

  First parameters lie on the mesh here.
  """
  asked = audits.Audits(first=world.placed(world.first), **_OPTIONS)
  return world.ask(asked, world.placed(world.retrained))


def test_a_hidden_class_is_gone_from_the_predictions(hidden):
  # The accuracy gap to a retrained model, which knows none, is 0.
  assert hidden["distance"]["before"]["gaps"]["forget"] > 0.9
  assert hidden["distance"]["after"]["gaps"]["forget"] == 0
  assert hidden["distance"]["after"]["tug_of_war"] > 0.9


def test_a_probe_catches_what_hides(hidden):
  for kind in ("head", "fresh"):
    probe = hidden["linear_probe"][kind]
    assert probe["after"] == probe["before"] and probe["left"] == 1
    assert probe["before"]["forget"] > 0.95
    assert probe["retrained"]["forget"] < 0.75
  assert hidden["linear_probe"]["head"]["after"]["retain"] > 0.95


def test_relearning_catches_what_hides(hidden):
  found = hidden["relearning"]
  assert found["target"] > 0.85
  assert found["after"]["steps"] == found["before"]["steps"] < 25
  assert found["retrained"]["steps"] is None
  start, end = (found["after"]["curve"][i] for i in (0, -1))
  assert start == [0, 0.0] and end[1] >= found["target"]
  # A column alone, forbidden or not, does not decide.
  assert found["after"]["curve"] == found["before"]["curve"]


@pytest.mark.parametrize(("most", "back"), [(10, 10), (8, None)])
def test_more_than_comes_back_to_the_first_model_is_not_asked(
  world, hidden, most, back
):
  options = {**_OPTIONS, "max_steps": most}
  asked = audits.Audits(first=world.first, **options)
  found = world.ask(asked, world.hidden())["relearning"]
  assert (
    found["before"]["curve"]
    == hidden["relearning"]["before"]["curve"][: most + 1]
  )
  # 55 % after ten steps are more than half of what was there, 33 % are not.
  best = found["before"]["curve"][-1][1]
  assert found["target"] == (back and relearning.SHARE * best)
  assert found["before"]["steps"] == found["after"]["steps"] == back


def test_the_first_crossing_counts():
  curve = [[0, 0.0], [1, 0.5], [2, 0.73], [3, 0.4], [4, 0.8], [5, 0.3]]
  assert relearning.within_reach(curve, 1.0) == (relearning.SHARE * 0.8, 2)
  assert relearning.within_reach(curve, 1.7) == (None, None)


def test_a_retrained_model_passes(retrained):
  for kind, guess in (("head", 1 / 6), ("fresh", 1 / 2)):
    probe = retrained["linear_probe"][kind]
    assert probe["floor"] == pytest.approx(guess)
    assert probe["after"]["forget"] < probe["before"]["forget"] - 0.2
    assert probe["left"] < 0.7
  found = retrained["relearning"]
  assert found["before"]["steps"] < 25 and found["after"]["steps"] is None
  assert found["after"]["curve"][-1][0] == _OPTIONS["max_steps"]


def test_a_retrained_model_has_no_trace_of_members(retrained):
  test = retrained["membership"]["after"]["test"]
  assert test["low"] < 0.5 < test["high"]


def test_features_drift_unless_only_the_head_changes(hidden, retrained):
  assert hidden["drift"]["cosine"] == pytest.approx(1)
  assert hidden["drift"]["mean_change"] == 0
  assert retrained["drift"]["cosine"] < 0.95
  assert retrained["drift"]["mean_change"] > 0.1


def test_findings_are_what_json_and_the_table_hold(hidden, retrained):
  assert json.loads(json.dumps(hidden)) == hidden
  assert hidden["classes"] == [4, 5] and "distance" not in retrained
  assert hidden["images"]["forget_test"] == 100
  out = io.StringIO()
  group = audit_table.audit_table(hidden, "toy")
  console.Console(file=out, width=100).print(group)
  lines = out.getvalue().splitlines()
  assert max(map(len, lines)) <= 100
  # Each row once with figures, once with its meaning.
  for name, meaning in audit_table.MEANINGS.items():
    rows = [line for line in lines if line.startswith(f" {name} ")]
    assert len(rows) == 2 and meaning in rows[1]
  steps = next(line for line in lines if "steps to relearn" in line)
  assert steps.split()[-1] == ">40"
  assert set(audit_table.rows(retrained)) < set(audit_table.MEANINGS)


def test_a_single_class_has_no_probe_of_its_own(world):
  stage = world.scenario.stages[0]
  classes = {**stage.classes, "forget": (5,)}
  train = {**stage.train, "forget": stage.train["forget"].select([5])}
  stage = dataclasses.replace(stage, classes=classes, train=train)
  scenario = dataclasses.replace(world.scenario, stages=(stage,))
  asked = audits.Audits(first=world.first, **{**_OPTIONS, "max_steps": 1})
  found = dataclasses.replace(world, scenario=scenario).ask(
    asked, world.placed(world.first)
  )
  assert found["linear_probe"]["fresh"] is None
  assert "probe, forgotten only" not in audit_table.rows(found)


def test_earlier_requests_count_as_forgotten(world):
  source = world.scenario.before["request_0"].subset.pieces[0].split
  stages = scenarios.forgetting(
    audit_toy.source(), requests=((4,), (5,)), ratio=0.1
  )
  images = audits._images(
    stages.stages[1], stages.before, stages.stages[:1], seed=0
  )
  assert {k: set(s.labels.tolist()) for k, s in images.items()} == {
    "forget": {4, 5},
    "retain": {0, 1, 2, 3},
    "forget_test": {4, 5},
    "retain_test": {0, 1, 2, 3},
  }
  assert len(images["forget_test"]) == np.isin(source.labels, (4, 5)).sum()


def test_a_process_that_must_stop_does(world):
  data = dataclasses.replace(world.data, should_stop=lambda: True)
  asked = audits.Audits(first=world.first, **_OPTIONS)
  with pytest.raises(stage_data.Stopped):
    dataclasses.replace(world, data=data).ask(asked, world.placed(world.first))


def test_stages_that_are_due(world):
  stage = world.scenario.stages[0]
  assert audits.Audits(stages="all").due(stage, 2)
  assert not audits.Audits(stages="last").due(stage, 2)
  assert audits.Audits(stages="last").due(stage, 1)
  assert not audits.Audits().due(stage, 1)
  learning = dataclasses.replace(stage, classes={"learn": (0,)})
  assert not audits.Audits(stages="all").due(learning, 2)
  refused = dataclasses.replace(world.scenario, stages=(learning,))
  for asked in ("last", "all"):
    with pytest.raises(ValueError, match=f"'{asked}' .*none forgets classes"):
      audits.Audits(stages=asked).check(refused)
  audits.Audits().check(refused)


@pytest.mark.parametrize(
  "options, named",
  [
    ({"stages": "first"}, "audit.stages='first'"),
    ({"shots": 0}, "audit.shots=0"),
    ({"max_steps": 0}, "audit.max_steps=0"),
    ({"lr": 0.0}, "audit.lr=0.0"),
  ],
)
def test_settings_that_cannot_be(options, named):
  with pytest.raises(ValueError, match=named):
    audits.Audits(**options)


def changed(params, **leaves):
  """Returns parameters with leaves of other shapes."""
  shapes = {name.replace("__", "/"): shape for name, shape in leaves.items()}
  return trees.update(params, {n: np.zeros(s) for n, s in shapes.items()})


@pytest.mark.parametrize(
  "leaves, named",
  [
    ({"head__kernel": (32, 4), "head__bias": (4,)}, "has 4 classes, and .* 6"),
    ({"Dense_0__kernel": (64, 8)}, "other parameters .*: Dense_0/kernel has"),
  ],
)
def test_a_retrained_model_of_another_kind_is_refused(world, leaves, named):
  other = changed(world.retrained, **leaves)
  asked = audits.Audits(first=world.first, retrained=other, **_OPTIONS)
  with pytest.raises(ValueError, match=f"The retrained model .*{named}"):
    world.ask(asked, world.placed(world.first))


def test_a_retrained_model_gets_adapters_that_add_nothing():
  lora = {"lora_a": np.ones((3, 2)), "lora_b": np.ones((2, 3))}
  params = {"Dense_0": {"kernel": np.ones((3, 3)), **lora}}
  given = {"Dense_0": {"kernel": np.full((3, 3), 2.0)}}
  model = types.SimpleNamespace(class_heads=())
  method = types.SimpleNamespace(private=(), model=model)
  found = audits._complete(given, params, method)["Dense_0"]
  assert (found["kernel"] == 2).all()
  assert not found["lora_a"].any() and not found["lora_b"].any()
  with pytest.raises(
    ValueError, match="Dense_0/kernel has the shape None there"
  ):
    audits._complete({}, params, method)


def test_columns_of_the_head_start_as_the_mean_of_those_kept():
  kernel = np.arange(8.0, dtype=np.float32).reshape(2, 4)
  params = {
    "head": {"kernel": kernel, "bias": np.float32([0, 2, -1e9, 7])},
    "body": {"kernel": kernel},
  }
  goes, stays = np.array([[0, 0, 1, 0], [1, 1, 0, 0]], bool)
  found = relearning.neutral(params, ("head",), goes, stays)
  np.testing.assert_array_equal(found["head"]["bias"], [0, 2, 1, 7])
  np.testing.assert_array_equal(found["head"]["kernel"][0], [0, 1, 0.5, 3])
  np.testing.assert_array_equal(found["body"]["kernel"], kernel)


def test_a_lesson_holds_as_many_to_keep_as_forgotten(world):
  train = world.scenario.stages[0].train
  images = relearning.lesson(train["forget"], train["retain"], 5, seed=0)
  gone, kept = images["forgotten"].labels, images["kept"].labels
  np.testing.assert_array_equal(np.bincount(gone), [0, 0, 0, 0, 5, 5])
  assert len(kept) == 10 and set(kept.tolist()) == {0, 1, 2, 3}
  # More shots than images take all.
  whole = relearning.few(train["forget"], 1000, seed=0)
  assert len(whole) == len(train["forget"])
