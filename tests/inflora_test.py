"""InfLoRA: spaces against brute force, and what a real run does to layers."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import main
from configs import digits_reference
from libml import trees
from libml.train.observer import Observer
from libml.train.walk import Interrupted
from methods import inflora

WIDTH = 12


def inputs(seed, rank=WIDTH):
  """Returns H [D, N] whose energies fall fourfold a direction."""
  rng = np.random.default_rng(seed)
  basis, _ = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))
  scale = 2.0 ** -np.arange(WIDTH) * (np.arange(WIDTH) < rank)
  return (basis * scale) @ rng.normal(size=(WIDTH, 200))


def moment(h):
  return jnp.asarray(h @ h.T, jnp.float32)


def brute_force(h, basis, epsilon):
  """Returns M [D, K] grown as GPM says it, a direction at a time, in float64.

  Args:
    h: [D, N].
    basis: M [D, K] before.
    epsilon: Share of the energy of h that M must hold.
  """
  outside = h - basis @ (basis.T @ h)
  directions, _, _ = np.linalg.svd(outside)
  for direction in directions.T:
    held = np.sum((basis.T @ h) ** 2)
    if held >= epsilon * np.sum(h**2):
      break
    basis = np.concatenate([basis, direction[:, None]], axis=1)
  return basis


@pytest.mark.parametrize("epsilon", [0.5, 0.8, 0.95, 0.999])
def test_space_grows_as_by_brute_force(epsilon):
  basis, space = np.zeros((WIDTH, 0)), jnp.zeros((WIDTH, WIDTH))
  sizes = []
  for seed in range(4):
    h = inputs(seed)
    basis = brute_force(h, basis, epsilon)
    space = inflora.grow(moment(h), space, np.float32(1 - epsilon))
    np.testing.assert_allclose(space, basis @ basis.T, atol=2e-4)
    np.testing.assert_allclose(space @ space, space, atol=1e-5)
    sizes.append(round(float(jnp.trace(space))))
  assert sizes[0] < sizes[-1] <= WIDTH


def test_space_that_holds_enough_stays():
  h = inputs(0, rank=3)
  space = inflora.grow(moment(h), jnp.zeros((WIDTH, WIDTH)), np.float32(0.0))
  again = inflora.grow(moment(2 * h), space, np.float32(0.05))
  np.testing.assert_allclose(jnp.trace(space), 3, atol=1e-5)
  np.testing.assert_allclose(again, space, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 4])
def test_design_is_the_leading_left_singular_vectors(rank):
  old, new = inputs(0), inputs(1)
  basis = brute_force(old, np.zeros((WIDTH, 0)), 0.95)
  lora_a = inflora.design(moment(new), jnp.asarray(basis @ basis.T), rank)
  outside = new - basis @ (basis.T @ new)
  left, _, _ = np.linalg.svd(outside)
  cosines = np.sum(left[:, :rank] * lora_a, axis=0)
  np.testing.assert_allclose(abs(cosines), 1.0, atol=1e-5)
  np.testing.assert_allclose(lora_a.T @ lora_a, np.eye(rank), atol=1e-5)
  np.testing.assert_allclose(basis.T @ lora_a, 0.0, atol=1e-5)


def test_where_all_is_protected_nothing_is_designed():
  # Float32 must see every direction.
  old, new = np.random.default_rng(0).normal(size=(2, WIDTH, 200))
  space = jnp.zeros((WIDTH, WIDTH))
  for h in (old, new):
    space = inflora.grow(moment(h), space, np.float32(0.0))
    np.testing.assert_allclose(space, np.eye(WIDTH), atol=1e-5)
    lora_a = inflora.design(moment(new), space, 4)
    np.testing.assert_array_equal(lora_a, jnp.zeros((WIDTH, 4)))


def test_directions_without_energy_are_zero():
  lora_a = inflora.design(
    moment(inputs(0, rank=2)), jnp.zeros((WIDTH, WIDTH)), 4
  )
  norms = np.linalg.norm(lora_a, axis=0)
  np.testing.assert_allclose(norms, [1, 1, 0, 0], atol=1e-5)


def config(**changes):
  """Returns the smoke run, 2 blocks and 3 tasks, adapters that learn much."""
  config = digits_reference.get_config("smoke,method=inflora")
  config.model.depth = 2
  config.epochs = 2
  config.optimizer.lora.lr = 0.05
  config.method.update(changes)
  return config


class Watcher(Observer):
  """Keeps states by stage, and second moments by pass."""

  def __init__(self):
    self.states, self.passes = [], []

  def on_start(self, run, state):
    self.on_stage(-1, "measure", state)

  def on_stage(self, stage, event, state):
    if event == "measure":
      self.states.append(host({"params": state.params, **state.memory}))

  def on_pass(self, stage, name, total):
    if name == "second_moments" and total is not None:
      self.passes.append(host(total))


def host(tree):
  return {k: np.array(v) for k, v in trees.flatten(tree).items()}


def watch(config, workdir):
  """Returns what a Watcher saw, and the results."""
  seen = Watcher()
  seen.record = main.execute(config, workdir, observer=seen)
  return seen


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Returns a whole run: what `watch` saw, its passes as (before, after)."""
  run = watch(config(), tmp_path_factory.mktemp("run"))
  run.moments = list(zip(run.passes[::2], run.passes[1::2], strict=True))
  return run


BLOCKS = ("encoderblock_0", "encoderblock_1")


def layer(block, name):
  return f"params/Transformer/{block}/MultiHeadDotProductAttention_0/{name}"


def update(run, task, block, name):
  """Returns by how much a task changed a kernel, [D, D]."""
  leaf = f"{layer(block, name)}/kernel"
  change = run.states[task + 1][leaf] - run.states[task][leaf]
  return change.reshape(len(change), -1)


def energy(change, moment):
  """Returns the sum of squares of what a change makes of inputs."""
  return np.trace(change.T @ moment @ change)


def protected(task):
  """Returns epsilon after a task of three, counted from 0."""
  return 0.95 + 0.05 * task / 3


@pytest.mark.parametrize("block", BLOCKS)
def test_adapters_are_orthogonal_to_the_old_space(run, block):
  for task in (1, 2):
    space = run.states[task][f"space/{block}"]
    assert np.trace(space) > 3
    for name in ("key", "value"):
      lora_a = run.states[task + 1][f"{layer(block, name)}/lora_a"]
      assert np.linalg.norm(lora_a) > 0.9
      np.testing.assert_allclose(space @ lora_a, 0.0, atol=1e-5)


@pytest.mark.parametrize("block", BLOCKS)
def test_space_holds_its_share_of_what_the_task_had(run, block):
  for task, (_, after) in enumerate(run.moments):
    space = run.states[task + 1][f"space/{block}"]
    held = np.trace(space @ after[block]) / np.trace(after[block])
    assert protected(task) - 1e-5 <= held < 1


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", ["key", "value"])
def test_update_moves_old_inputs_by_what_is_not_protected(run, block, name):
  for task in (1, 2):
    change = update(run, task, block, name)
    largest = np.linalg.norm(change, ord=2)
    assert largest > 0.01
    space = run.states[task][f"space/{block}"]
    assert np.linalg.norm(space @ change, ord=2) < 1e-4 * largest
    old, new = run.moments[task - 1][1][block], run.moments[task][0][block]
    bound = (1 - protected(task - 1)) * np.trace(old) * largest**2
    assert energy(change, old) <= bound
    # Not because it moves nothing.
    assert energy(change, new) > 0.001 * np.trace(new) * largest**2


def test_only_kernels_with_adapters_and_the_head_change(run):
  first, last = run.states[0], run.states[-1]
  changed = {k for k in first if not np.array_equal(first[k], last[k])}
  changed = {k for k in changed if k.startswith("params/")}
  assert changed == {
    "params/head/kernel",
    "params/head/bias",
    *(
      f"{layer(block, name)}/{leaf}"
      for block in BLOCKS
      for name in ("key", "value")
      for leaf in ("kernel", "lora_a")
    ),
  }


def test_full_protection_fixes_the_backbone_after_the_first_task(tmp_path):
  run = watch(config(epsilon=1.0), tmp_path)
  for block in BLOCKS:
    assert np.linalg.norm(update(run, 0, block, "key")) > 0.01
    for task in (1, 2):
      assert not update(run, task, block, "key").any()
      np.testing.assert_allclose(
        run.states[task + 1][f"space/{block}"],
        run.states[1][f"space/{block}"],
        atol=1e-5,
      )


def test_stopped_run_goes_on_to_the_same_numbers(run, tmp_path):
  for asked in (11, 4, 9):  # in passes and in rounds, of different stages
    stop = functools.partial(next, iter([False] * asked), True)
    with pytest.raises(Interrupted):
      main.execute(config(), tmp_path, stop)
  resumed = watch(config(), tmp_path)
  assert resumed.record["matrix"] == run.record["matrix"]
  for name, value in resumed.states[-1].items():
    np.testing.assert_array_equal(value, run.states[-1][name], err_msg=name)


@pytest.mark.parametrize("name", ["epsilon", "final_epsilon"])
@pytest.mark.parametrize("value", [0.0, -0.5, 1.01])
def test_share_of_energy_is_checked(name, value):
  with pytest.raises(ValueError, match=f"{name}={value} must be above 0"):
    main.build_method(config(**{name: value}), 6, 3)


def test_model_without_adapters_is_refused():
  plain = config()
  plain.model.lora = None
  with pytest.raises(ValueError, match=r"set model\.lora"):
    main.build_method(plain, 6, 3)


def test_trained_design_is_refused(tmp_path):
  changed = config()
  changed.optimizer.groups = (
    ("lora", r".*/lora_[ab]"),
    *changed.optimizer.groups[1:],
  )
  with pytest.raises(
    ValueError, match="lora_a itself, and the optimizer must not"
  ):
    main.execute(changed, tmp_path)


def test_layers_with_other_inputs_are_refused(tmp_path):
  changed = config()
  changed.model.lora.layers = r".*/out"
  with pytest.raises(ValueError, match="match only query, key, value"):
    main.execute(changed, tmp_path)
