"""What every method must keep to, and what single options do."""

import dataclasses
import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import nowhere
import numpy as np
import pytest
import walks

import main
from configs import baselines
from configs import common
from libml import trees
from libml.train import weights
from libml.train.observer import Observer
from methods import METHODS
from methods.parts import class_heads

# Methods that also run on one device: each uses a batch, or sums over images,
# in a way of its own. L2P, LoRA-Sub, GS-LoRA and swapping are in
# devices_test and processes_test.
ALONE = (
  "ranpac",  # sums of features
  "ewc",  # squared gradients
  "scrub",  # two rounds of an epoch, a teacher
)

# Prompts in fewer blocks than in the smoke config.
FEWER = {
  "dualprompt": {"e_layers": (1,), "g_layers": (0,)},
  "coda_prompt": {"e_layers": (0,)},
}

ROOT = pathlib.Path(__file__).resolve().parent.parent


def smoke_config(name):
  """Returns the smoke run of the first config that names a method."""
  arguments = ["smoke", "smoke,plus", "smoke,measure", "smoke,order=lfl"]
  methods = [*common.REFERENCES, *baselines.BASELINES]
  arguments += [f"smoke,method={m}" for m in methods]
  for path in sorted((ROOT / "configs").glob("[a-z]*_*.py")):
    get_config = importlib.import_module(f"configs.{path.stem}").get_config
    for argument in arguments:
      try:
        config = get_config(argument)
      except ValueError:
        continue  # takes no such argument
      kinds = {
        "class_incremental": "num_tasks",
        "forgetting": "num_requests",
        "swapping": "order",
      }
      length = config.scenario.get(kinds.get(config.scenario.name, ""))
      if length in (3, "lfl") and config.method.name == name:
        return config
  raise ValueError(f"No config names the method {name!r}.")


def order(name):
  """Returns where a method stands among the tests."""
  return ALONE.index(name) if name in ALONE else len(ALONE)


def watch(name, workdir, mesh=None):
  """Runs a method's smoke config on few blocks; returns what it showed."""
  config = smoke_config(name)
  config.method.update(FEWER.get(name, {}))
  config.model.depth = max(1, METHODS[name].fewest_blocks(config.method))
  config.checkpoint.every_steps = 1000
  shorter = {"num_tasks": 2, "num_requests": 2, "order": "lf"}
  for key in shorter.keys() & set(config.scenario):
    if config.scenario[key] is not None:
      config.scenario[key] = shorter[key]
  with pytest.MonkeyPatch.context() as patch:
    if mesh is not None:
      patch.setattr(main.sharding, "make_mesh", lambda **_: mesh)
    seen = walks.watch(config, workdir)
  seen.name, seen.states = name, [seen.start, *seen.merged]
  return seen


# Pytest orders tests by the place of a parameter: those of ALONE come first,
# so that test_one_device_trains_the_same finds its run still there.
@pytest.fixture(scope="module", params=sorted(METHODS, key=order))
def run(request, tmp_path_factory):
  """Returns each method's smoke run on two devices."""
  name, workdir = request.param, tmp_path_factory.mktemp(request.param)
  if name in ALONE:
    return watch(name, workdir)
  with nowhere.leave_nothing():
    return watch(name, workdir)


def trained(run):
  """Returns the names of the parameters that the optimizer trains."""
  trainable = run.run.optimizer.groups.trainable(run.state.params)
  return {f"params/{n}" for n, on in trees.flatten(trainable).items() if on}


def may_change(run):
  """Returns the names of the parameters that may change."""
  rewrites = run.run.method.rewrites
  names = trees.flatten(run.state.params)
  rewritten = {f"params/{n}" for n in names if re.fullmatch(rewrites, n)}
  return trained(run) | rewritten


def test_all_stages_run(run):
  assert run.record["finished"] and run.record["stages_done"] == 2
  assert run.record["devices"]["count"] == 2


def test_frozen_weights_stay_bit_for_bit(run):
  first, last = run.states[0], run.states[-1]
  changed = {
    name for name in first if not np.array_equal(first[name], last[name])
  }
  changed = {name for name in changed if name.startswith("params/")}
  assert changed <= may_change(run)
  if run.metrics:
    assert changed, "training moves something"
  else:
    assert changed <= may_change(run) - trained(run)


def test_every_trained_group_moves(run):
  groups = run.run.optimizer.groups
  labels = trees.flatten(groups.labels(run.state.params))
  moved = {
    labels[name.removeprefix("params/")]
    for begun, trained in zip(run.begun, run.trained, strict=True)
    for name in begun
    if name.startswith("params/")
    and not np.array_equal(begun[name], trained[name])
  }
  # Some methods take no step, whatever the optimizer would train.
  assert moved >= (set(groups.trained) if run.metrics else set())


def test_memory_keeps_its_structure(run):
  kinds = [
    {name: (x.shape, x.dtype) for name, x in state.items()}
    for state in run.states
  ]
  assert len(kinds) == 3 + bool(run.run.scenario.before)
  assert all(kind == kinds[0] for kind in kinds)


def test_each_step_is_compiled_once(run):
  stages, made = run.run.scenario.stages, run.record["compiled_steps"]
  rounds = {
    f"train/{round_.name}"
    for stage in stages
    for round_ in run.run.method.rounds(stage, run.run.data(stage))
  }
  assert {name for name in made if name.startswith("train/")} == rounds
  assert made["evaluate"] == 1
  assert set(made.values()) == {1}


def test_metrics_are_finite_scalars(run):
  for metrics in run.metrics:
    assert "loss" in metrics
    assert {np.shape(value) for value in metrics.values()} == {()}
    assert np.isfinite(list(metrics.values())).all()


@pytest.mark.parametrize("run", ALONE, indirect=True)
def test_one_device_trains_the_same(run, tmp_path):
  mesh = jax.make_mesh(
    (1, 1),
    ("data", "model"),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:1],
  )
  with nowhere.leave_nothing():
    alone = watch(run.name, tmp_path, mesh)
  assert alone.record["devices"]["count"] == 1
  assert run.record["matrix"] == alone.record["matrix"]
  assert run.record["summary"] == alone.record["summary"]
  for ours, theirs in zip(run.states, alone.states, strict=True):
    for name, value in ours.items():
      np.testing.assert_allclose(
        value, theirs[name], rtol=1e-3, atol=1e-5, err_msg=name
      )


def build(name, **changes):
  """Returns a smoke method with one layer, and its parameters."""
  config = smoke_config(name)
  config.model.depth = 1
  config.method.update(changes)
  method = main.build_method(config, 6, 3)
  params, _ = weights.first(config, method.model)
  return method, method.init_params(params, jax.random.key(0))


MASKED = [
  ("finetune", {"mask_classes": True}),
  ("l2p", {}),
  ("dualprompt", {"e_layers": (0,), "g_layers": (0,)}),
  ("coda_prompt", {"e_layers": (0,)}),
  ("inflora", {}),
]


@pytest.mark.parametrize(("name", "options"), MASKED)
def test_masked_columns_get_no_gradient(name, options):
  method, params = build(name, **options)
  memory = method.init_memory(params, jax.tree.map(lambda _: False, params))
  memory["classes"] = jnp.isin(jnp.arange(6), jnp.array([1, 4]))
  batch = {"image": jnp.ones((4, 8, 8, 3)), "label": jnp.array([1, 4, 4, 4])}
  grads, _ = jax.jit(jax.grad(method.loss, has_aux=True))(
    params, memory, {"train": batch}, jax.random.key(1)
  )
  others = jnp.array([0, 2, 3, 5])
  assert (grads["head"]["bias"][others] == 0).all()
  columns = abs(grads["head"]["kernel"]).sum(axis=0)
  assert (columns[others] == 0).all()
  assert (columns[jnp.array([1, 4])] > 0).all()


@pytest.mark.parametrize("part", ["none", "kernel", "all"])
def test_transfer_head_starts_with_means_of_the_same_position(part):
  kernel = jnp.arange(12.0).reshape(2, 6)
  params = {"head": {"kernel": kernel, "bias": jnp.arange(6.0)}, "cls": 0}
  classes = {"learn": (4, 0), "seen": (5, 2, 1, 3, 4, 0)}
  head = class_heads.transfer(params, classes, part, ["head"])["head"]
  means = kernel.at[:, 4].set((kernel[:, 5] + kernel[:, 1]) / 2)
  means = means.at[:, 0].set((kernel[:, 2] + kernel[:, 3]) / 2)
  bias = jnp.array([2.5, 1, 2, 3, 3, 5]) if part == "all" else jnp.arange(6.0)
  np.testing.assert_array_equal(
    head["kernel"], kernel if part == "none" else means
  )
  np.testing.assert_array_equal(head["bias"], bias)


def test_first_task_has_no_head_to_transfer():
  params = {"head": {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)}}
  classes = {"learn": (2, 3), "seen": (2, 3)}
  assert class_heads.transfer(params, classes, "all", ["head"]) is params


def test_trained_backbone_keeps_the_initial_queries():
  method, params = build("l2p")
  memory = method.init_memory(params, jax.tree.map(lambda _: True, params))
  moved = jax.tree.map(lambda p: p + 0.1, params)
  image = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  initial = method.find_query(params, {}, image)
  np.testing.assert_array_equal(
    method.find_query(moved, memory, image), initial
  )
  assert abs(method.find_query(moved, {}, image) - initial).max() > 1e-3


def test_a_step_holds_one_copy_of_the_parameters(tmp_path):
  # One shape that only the blocks' MLPs have.
  config = smoke_config("l2p")

  def kernels():
    return [x for x in jax.live_arrays() if x.shape == (16, 32)]

  counts, others = [], kernels()  # holding them, none goes while we count

  class Counter(Observer):
    def on_step(self, stage, step, metrics):
      counts.append(len(kernels()) - len(others))

  main.execute(config, tmp_path, observer=Counter())
  assert counts == [config.model.depth] * 12


def test_frozen_backbone_has_no_second_copy():
  method, params = build("l2p")
  frozen = jax.tree.map(lambda _: False, params)
  assert "query" not in method.init_memory(params, frozen)


@pytest.mark.parametrize("method", METHODS.values())
def test_methods_are_frozen_dataclasses(method):
  assert dataclasses.is_dataclass(method)
  assert method.__dataclass_params__.frozen
