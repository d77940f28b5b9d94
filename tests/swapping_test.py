"""Knowledge Swapping in the real loop: what stages share, and what they do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from swap_tiny import tiny
from walks import Watcher
from walks import watch

from configs import common
from libml import trees
from libml.optim import group_lasso
from models import lora
from models import vit

SCALE = 0.5
GOALS = ("learn", "forget", "learn")
OLD, NEW = (0, 1), (4, 5)


def moments(state):
  return {k: np.array(v) for k, v in trees.flatten(state.opt_state).items()}


class Moments(Watcher):
  """Keeps the optimizer's moments around each stage's begin, as pairs."""

  def __init__(self):
    super().__init__()
    self.moments = []

  def on_stage(self, stage, event, state):
    super().on_stage(stage, event, state)
    if event == "begin":
      self.moments.append([moments(state)])
    if event == "train" and len(self.moments[-1]) == 1:
      self.moments[-1].append(moments(state))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Returns a run of lfl, with the moments around each stage's begin."""
  return watch(tiny(), tmp_path_factory.mktemp("lfl"), seen=Moments())


def params(host):
  """Returns a state's parameters as a tree."""
  flat = {k: v for k, v in host.items() if k.startswith("params/")}
  return traverse_util.unflatten_dict(flat, sep="/")["params"]


def adapters(host):
  return {n: x for n, x in host.items() if n[-7:] in ("/lora_a", "/lora_b")}


def metrics_of(run, stage):
  """Returns what the steps of a stage logged."""
  ends = np.cumsum([0, *steps_of(run)])
  return run.metrics[ends[stage] : ends[stage + 1]]


def steps_of(run):
  """Returns the number of steps of each stage."""
  return [
    sum(r.steps for r in run.run.method.rounds(s, run.run.data(s)))
    for s in run.run.scenario.stages
  ]


def test_adapters_of_the_paper_s_model():
  module = vit.build("ViT-B_16", num_classes=200, lora=common.ffn_lora())
  image = {"image": jnp.zeros((1, 224, 224, 3))}
  shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
  _, fresh = lora.split(shapes)
  assert sum(leaf.size for leaf in jax.tree.leaves(fresh)) == 737_280
  slope = common.method("swapping")["slope"]
  drawn = lora.restart(fresh, jax.random.key(0), slope=slope)
  blocks = group_lasso.of_adapters("block", module.blocks)
  assert len(group_lasso.norms(drawn, blocks)) == 12
  assert float(group_lasso.penalty(drawn, blocks)) == pytest.approx(
    9.505, rel=0.02
  )


def test_stages_retain_what_was_learned_when_they_forget(run):
  stages = run.run.scenario.stages
  assert tuple(stage.goal for stage in stages) == GOALS
  retained = [set(stage.train["retain"].labels.tolist()) for stage in stages]
  assert retained == [{*OLD}, {*OLD, *NEW}, {*OLD}]
  sizes = [len(stage.train["retain"]) for stage in stages]
  assert sizes == [16, 16 + len(stages[0].train["learn"]), 16]
  assert steps_of(run) == [2 * (size // 8) for size in sizes]


def test_each_stage_has_the_loss_of_its_goal(run):
  assert len(run.metrics) == sum(steps_of(run))
  for number, goal in enumerate(GOALS):
    for told in metrics_of(run, number):
      assert ("learn" in told, "forget" in told) == (
        goal == "learn",
        goal == "forget",
      )
      if goal == "learn":
        value = told["learn"] + 0.2 * told["retain"]
      else:
        value = told["retain"] + 0.2 * max(0.0, 30 - told["forget"])
      value = float(value + 0.005 * told["structure"])
      assert float(told["loss"]) == pytest.approx(value, rel=1e-5)


def test_adapters_are_drawn_once_and_go_on(run):
  slope = np.sqrt(50)
  for name, leaf in adapters(run.begun[0]).items():
    if name.endswith("lora_b"):
      assert not leaf.any() or name.startswith("memory/")
    elif name.startswith("params/"):
      bound = np.sqrt(6 / ((1 + slope**2) * len(leaf)))
      assert 0.7 * bound < abs(leaf).max() <= bound
  for number in (1, 2):
    before = adapters(run.trained[number - 1])
    after = adapters(run.begun[number])
    for name, leaf in after.items():
      if name.startswith("params/"):
        assert np.array_equal(before[name], leaf) and leaf.any(), name
      else:  # "start", where the stage sets out
        name = name.replace("memory/start/", "params/")
        assert np.array_equal(after[name], leaf), name


def test_moments_go_on_over_the_change_of_the_stage(run):
  assert len(run.moments) == 3
  for number, (before, after) in enumerate(run.moments):
    assert before.keys() == after.keys()
    for name, leaf in before.items():
      assert np.array_equal(leaf, after[name]), name
    nu = [leaf for name, leaf in after.items() if "/nu/" in name]
    assert len(nu) == 8
    assert all(leaf.any() for leaf in nu) == (number > 0)
    counts = [leaf for name, leaf in after.items() if name.endswith("count")]
    assert counts and all(c == sum(steps_of(run)[:number]) for c in counts)


def test_rates_start_again_at_each_stage(run):
  for number in range(3):
    rates = [m["learning_rate/lora"] for m in metrics_of(run, number)]
    half = len(rates) // 2
    expected = [1e-2] * half + [(1e-2 + 1e-5) / 2] * half
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_nothing_but_adapters_changes(run):
  for first, last in zip(run.begun, run.trained, strict=True):
    moved = {n for n in first if not np.array_equal(first[n], last[n])}
    names = {n for n in adapters(first) if n.startswith("params/")}
    assert moved == names
  for name, leaf in run.start.items():
    if name.startswith("params/") and name not in adapters(run.start):
      assert np.array_equal(run.merged[-1][name], leaf), name
  assert run.start["params/head/kernel"].any()


def test_one_step_serves_all_stages_of_a_goal(run):
  compiled = run.record["compiled_steps"]
  steps = {name for name in compiled if name.startswith("train/")}
  assert steps == {"train/learn", "train/forget"}
  assert set(compiled.values()) == {1}


def test_report_tells_how_far_the_kernels_would_have_moved(run):
  for number, report in enumerate(run.record["reports"]):
    before, after = (
      trees.flatten(lora.merge(params(seen[number]), SCALE))
      for seen in (run.begun, run.trained)
    )
    squares = dict.fromkeys(("encoderblock_0", "encoderblock_1"), 0.0)
    for name, kernel in after.items():
      if name.endswith("kernel") and "encoderblock" in name:
        change = np.float64(kernel) - before[name]
        squares[name.split("/")[1]] += np.sum(change**2)
    assert report["moved_norm"].keys() == squares.keys()
    for block, square in squares.items():
      found = report["moved_norm"][block]
      assert found == pytest.approx(np.sqrt(square), rel=1e-4)
      # Since the stage began, and not since the first.
      same = found == pytest.approx(report["change_norm"][block], rel=1e-3)
      assert same == (number == 0)
