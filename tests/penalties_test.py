"""L2, EWC and MAS: what memory holds, and on what images it is weighed."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from baselines_toy import tiny
from walks import watch

import main
from libml.devices.compiled import Compiled
from libml.pipeline import stage_data
from methods import ewc
from methods import l2
from methods import mas

SHAPES = {"a": (4, 3), "b": (5,)}
KINDS = {"l2": l2.L2, "ewc": ewc.EWC, "mas": mas.MAS}
SUMS = ("weights", "anchor", "constant")


def build(name):
  """Returns a method of no model."""
  return KINDS[name](model=None, problem=None, num_classes=3, num_stages=9)


def draw(rng):
  return {n: jnp.float32(rng.normal(size=s)) for n, s in SHAPES.items()}


def blank(method):
  flags = dict.fromkeys(SHAPES, True)
  return method.init_memory(draw(np.random.default_rng(9)), flags)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Returns EWC's run on all images to retain, after the first request."""
  config = tiny(
    "ewc", method__weigh_on="retain_all", scenario__whole_retain=True
  )
  return watch(config, tmp_path_factory.mktemp("run"))


# A sum of quadratics is one.


def test_any_number_of_anchors_is_their_sum():
  rng, method = np.random.default_rng(0), build("ewc")
  memory, anchors = blank(method), []
  params = draw(rng)
  for _ in range(9):
    theta = draw(rng)
    weights = {n: jnp.abs(x) * (x > -0.5) for n, x in draw(rng).items()}
    weights["b"] = weights["b"].at[0].set(0.0)  # of no weight in any request
    seen = {name: 4 * w for name, w in weights.items()}
    memory = method.add_anchor(memory, theta, seen, 4)
    anchors.append((theta, weights))
    direct = sum(
      np.sum(np.float64(w[n]) * (np.float64(params[n]) - np.float64(t[n])) ** 2)
      for t, w in anchors
      for n in SHAPES
    )
    found = method.penalty(params, memory)
    assert float(found) == pytest.approx(direct, rel=1e-5)
    shapes = jax.tree.map(np.shape, memory)
    assert shapes == jax.tree.map(np.shape, blank(method))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(memory))


@pytest.mark.parametrize("name", KINDS)
def test_one_anchor_alone_pulls_nothing(name):
  method, theta = build(name), draw(np.random.default_rng(1))
  seen = {n: jnp.ones(()) if name == "l2" else abs(theta[n]) for n in SHAPES}
  memory = method.add_anchor(blank(method), theta, seen, 3)
  value, grads = jax.value_and_grad(method.penalty)(theta, memory)
  assert value == 0
  assert not any(np.any(grad) for grad in grads.values())
  moved = {**theta, "b": theta["b"] + 0.1}
  value, grads = jax.value_and_grad(method.penalty)(moved, memory)
  assert value > 0 and np.all(grads["b"] > 0) and not np.any(grads["a"])


def test_l2_holds_a_number_a_tensor_and_reads_no_image():
  method = build("l2")
  state = types.SimpleNamespace(
    params=draw(np.random.default_rng(2)), memory=blank(method)
  )
  state.replace = lambda **changes: types.SimpleNamespace(
    **{"params": state.params, "replace": state.replace, **changes}
  )
  classes = {"known": (0, 1, 2), "forget": (2,), "retain": (0, 1)}
  stage = types.SimpleNamespace(index=0, classes=classes)
  data = types.SimpleNamespace(compiled=Compiled())  # and no images
  after = method.before_stage(state, stage, data)
  assert {n: float(w) for n, w in after.memory["weights"].items()} == {
    "a": 1.0,
    "b": 1.0,
  }
  assert np.array_equal(after.memory["anchor"]["a"], state.params["a"])


# In a run.


def weighed(run, stage, role):
  """Returns the weights of a stage's anchor on a role, batch by batch."""
  data = run.run.data(run.run.scenario.stages[stage])
  host = run.begun[stage]
  params = {
    name.removeprefix("params/"): leaf
    for name, leaf in host.items()
    if name.startswith("params/")
  }
  nested = jax.tree.unflatten(
    jax.tree.structure(run.state.params), list(params.values())
  )
  weigh = jax.jit(run.run.method.weigh)
  found = [
    weigh(nested, run.state.memory, batch)
    for batch in data.sweep(data.train[role])
  ]
  return {
    name: np.mean([np.float64(part[name]) for part in found], axis=0)
    for name in found[0]
  }


def held(run, stage, part):
  """Returns what memory holds in a stage's training, by parameter."""
  prefix = f"memory/{part}/"
  return {
    name.removeprefix(prefix): np.float64(leaf)
    for name, leaf in run.begun[stage].items()
    if name.startswith(prefix)
  }


@pytest.mark.parametrize(
  ("stage", "role"), [(0, "retain"), (1, "retain_all"), (2, "retain_all")]
)
def test_anchors_are_weighed_on_the_role(run, stage, role):
  before = held(run, stage - 1, "weights") if stage else None
  added = held(run, stage, "weights")
  wanted = weighed(run, stage, role)
  other = {"retain": "retain_all", "retain_all": "retain"}[role]
  others = weighed(run, stage, other)
  assert added.keys() == wanted.keys()
  # A key's bias has no gradient, so what is found there is rounding.
  noise = 1e-9 * max(abs(leaf).max() for leaf in added.values())
  differ = 0
  for name, leaf in wanted.items():
    found = added[name] - (before[name] if before else 0)
    scale = max(abs(added[name]).max(), noise)
    np.testing.assert_allclose(
      found, leaf, rtol=0, atol=1e-5 * scale, err_msg=name
    )
    differ += bool(abs(leaf - others[name]).max() > 1e-2 * scale)
  assert differ > len(wanted) / 2


def test_sample_is_the_default(run, monkeypatch):
  method = dataclasses.replace(run.run.method, weigh_on="retain")
  stage, asked = run.run.scenario.stages[1], []
  data = dataclasses.replace(run.run.data(stage), compiled=Compiled())
  accumulate = stage_data.StageData.accumulate

  def watched(self, name, fn, state, *roles, **options):
    asked.append(roles)
    return accumulate(self, name, fn, state, *roles, **options)

  monkeypatch.setattr(stage_data.StageData, "accumulate", watched)
  method.before_stage(run.state, stage, data)
  assert asked == [("retain",)]


def test_memory_does_not_grow(run):
  sizes = [
    {n: x.nbytes for n, x in host.items() if n.startswith("memory/")}
    for host in (run.start, *run.begun)
  ]
  assert all(size == sizes[0] for size in sizes)
  trained = sum(
    x.nbytes
    for n, x in run.start.items()
    if n.startswith("params/") and not n.startswith("params/head/")
  )
  kept = sum(size for n, size in sizes[0].items() if n.split("/")[1] in SUMS)
  assert kept == 2 * trained + 4


def test_penalty_is_0_until_the_first_step_is_taken(run):
  penalty = [float(m["penalty"]) for m in run.metrics]
  assert penalty[0] == 0 and all(value > 0 for value in penalty[1:])
  for metrics in run.metrics:
    total = metrics["cross_entropy"] + 10 * metrics["penalty"]
    assert float(metrics["loss"]) == pytest.approx(float(total), rel=1e-6)


def test_head_has_no_anchor(run):
  assert not any("head" in name for name in held(run, 2, "weights"))


# What a user gets wrong.

CASES = {
  "no role with all images": (
    {"method__weigh_on": "retain_all"},
    r"weigh_on='retain_all' .* stage 2 has only \['forget', 'retain'\]; set "
    "scenario.whole_retain=True",
  ),
  "another role": (
    {"method__weigh_on": "forget"},
    r"weigh_on='forget' must be 'retain' or 'retain_all'",
  ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_refused(case, tmp_path):
  changes, message = CASES[case]
  with pytest.raises(ValueError, match=message):
    main.execute(tiny("ewc", **changes), tmp_path)


def test_one_request_needs_no_further_role(tmp_path):
  config = tiny("ewc", method__weigh_on="retain_all", scenario__num_requests=1)
  _, scenario = main.build_scenario(config)
  main.build_method(config, 6, 1).check(scenario)
