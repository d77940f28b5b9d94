"""Methods that forget, one request in every sampling of its images.

All of them, three requests one after the other, are methods_test.py's.
"""

import collections
import re

import nowhere
import numpy as np
import pytest
import toy
import walks

from configs import baselines
from configs import digits_baselines
from configs import digits_gs_lora
from libml import trees
from libml.devices.compiled import Compiled
from libml.train import run as run_lib

ALL = [*baselines.BASELINES, "gs_lora", "gs_lora_plus"]
ONE = {"num_requests": 1, "classes_per_request": 2, "missing": 0}
SCENARIOS = {
  "single": {**ONE, "shots": None, "ratio": 0.5},
  "shots": {**ONE, "shots": 4},
  "missing": {**ONE, "missing": 1},
}
# Whose hooks use the classes of a request, each in a way of its own; all
# samplings are those of GS-LoRA.
FAMILIES = ("lirf", "retrain", "salun", "gs_lora_plus")
CASES = [
  *(("gs_lora", scenario) for scenario in SCENARIOS),
  *((method, "missing") for method in FAMILIES),
]


def smoke_config(method, scenario):
  """Returns a run of seconds; all of them have the same shapes."""
  if method in baselines.BASELINES:
    config = digits_baselines.get_config(f"smoke,method={method}")
  else:
    plus = ",plus" if method == "gs_lora_plus" else ""
    config = digits_gs_lora.get_config(f"smoke{plus}")
    config.method.alpha_epoch = 0
  changes = {f"scenario__{k}": v for k, v in SCENARIOS[scenario].items()}
  blocks = 2 if method == "lirf" else 1  # it cuts the network in two
  changes |= {"epochs": 1, "export": False, "model__depth": blocks}
  return toy.change(config, changes)


@pytest.fixture(scope="module")
def compiled():
  """Returns what a method's runs share, by its name."""
  return collections.defaultdict(Compiled)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def run(request, compiled, tmp_path_factory):
  """Returns a method's run in a scenario."""
  method, scenario = request.param
  with nowhere.leave_nothing(), pytest.MonkeyPatch.context() as patch:
    patch.setattr(run_lib, "Compiled", lambda _: compiled[method])
    config = smoke_config(method, scenario)
    seen = walks.watch(config, tmp_path_factory.mktemp(method))
  seen.scenario = scenario
  return seen


def test_all_requests_are_met(run):
  record = run.record
  count = SCENARIOS[run.scenario]["num_requests"]
  assert record["finished"] and record["stages_done"] == count
  assert len(run.merged) == count + 1
  assert all(np.isfinite(x).all() for x in run.merged[-1].values())
  for metrics in run.metrics:
    assert np.isfinite(list(metrics.values())).all()


def test_only_what_may_move_moves(run):
  optimizer, method = run.run.optimizer, run.run.method
  trainable = trees.flatten(optimizer.groups.trainable(run.state.params))
  first, *_, last = run.merged
  moved = {
    name
    for name in trainable
    if not np.array_equal(first[f"params/{name}"], last[f"params/{name}"])
  }
  rewritten = {n for n in trainable if re.fullmatch(method.rewrites, n)}
  assert moved <= {n for n, on in trainable.items() if on} | rewritten
  assert bool(moved) == bool(run.metrics or rewritten)


def test_one_compiled_step_serves_all_scenarios(run):
  stage = run.run.scenario.stages[0]
  rounds = run.run.method.rounds(stage, run.run.data(stage))
  made = run.record["compiled_steps"]
  assert {f"train/{r.name}" for r in rounds} <= set(made)
  assert set(made.values()) == {1}


def test_figures_are_those_of_the_scenario(run):
  summary, scenario = run.record["final"], run.record["scenario"]
  figures = {"acc_forget", "acc_retain", "drop_forget", "h_mean"}
  assert figures <= set(summary)
  assert "acc_old" not in summary
  assert ("acc_missing" in summary) == (run.scenario == "missing")
  images = scenario["images"][0]
  if run.scenario == "shots":
    assert images["forget"] == 4 * 2 and images["retain"] == 4 * 4
  if run.scenario == "missing":
    assert len(scenario["missing"]) == 1
