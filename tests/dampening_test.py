"""SSD: what is dampened, by how much, and what stays."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from baselines_toy import tiny
from walks import watch

import main
from methods import ssd


def build(**options):
  """Returns a method of no model."""
  return ssd.SSD(
    model=None, problem=None, num_classes=3, num_stages=1, **options
  )


def damp(method, theta, forget, retain, images=(10, 30)):
  """Returns weights after mean Fisher informations of both kinds of images."""
  arrays = [jnp.float32(x) for x in (theta, forget, retain)]
  theta, forget, retain = ({"w": array} for array in arrays)
  goes, stays = (
    (jax.tree.map(lambda f, n=n: n * f, fisher), jnp.int32(n))
    for fisher, n in zip((forget, retain), images, strict=True)
  )
  return np.array(method.dampened(theta, goes, stays)["w"])


# By hand. Of 40 images 10 go, so F_d = (10 F_f + 30 F_r) / 40.


def test_example_by_hand():
  theta = [2.0, -2.0, 2.0, 2.0]
  forget = [8.0, 8.0, 8.0, 1.0]
  retain = [0.0, 4.0, 8.0, 9.0]
  # F_d = 2, 5, 8, 7; where 8 > 1.5 F_d: the first two.
  found = damp(build(select=1.5, dampen=1.0), theta, forget, retain)
  np.testing.assert_allclose(found, [2 * 2 / 8, -2 * 5 / 8, 2, 2], rtol=1e-6)
  # Half of that, and with a factor that would enlarge, 1.
  found = damp(build(select=1.5, dampen=0.5), theta, forget, retain)
  np.testing.assert_allclose(found, [2 * 1 / 8, -2 * 2.5 / 8, 2, 2], rtol=1e-6)
  found = damp(build(select=1.5, dampen=2.0), theta, forget, retain)
  np.testing.assert_allclose(found, [2 * 4 / 8, -2, 2, 2], rtol=1e-6)
  # F_d = 3, 3.25 of 9 and 27 images; 9 is not above 3 F_d, and 10 is.
  found = damp(build(select=3.0), [1.0, 1.0], [9.0, 10.0], [1.0, 1.0], (9, 27))
  np.testing.assert_allclose(found, [1.0, 0.325], rtol=1e-6)


def test_equal_information_changes_nothing():
  rng = np.random.default_rng(0)
  theta, fisher = rng.normal(size=50), rng.random(50)
  fisher[:5] = 0.0
  for dampen in (0.1, 1.0):
    # Equal to rounding, so not on the edge of select=1.
    method = build(select=1.001, dampen=dampen)
    found = damp(method, theta, fisher, fisher)
    assert np.array_equal(found, np.float32(theta))


def test_what_matters_for_nothing_stays():
  found = damp(build(), [3.0, 3.0], [0.0, 0.0], [0.0, 2.0])
  assert found.tolist() == [3.0, 3.0]


def test_dampening_never_turns_or_enlarges_a_weight():
  rng = np.random.default_rng(1)
  theta, forget, retain = rng.normal(size=(3, 500))
  found = damp(build(dampen=3.0), theta, forget**2, retain**2)
  ratio = found / np.float32(theta)
  assert (ratio > 0).all() and ratio.max() == 1.0
  assert 0.1 < np.mean(ratio < 1) < 0.9


# In a run.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return watch(tiny("ssd", method__select=1.5), tmp_path_factory.mktemp("run"))


def test_no_step_is_taken(run):
  assert run.metrics == [] and run.begun == []
  assert run.record["train_steps"] == 0
  made = run.record["compiled_steps"]
  assert not [name for name in made if name.startswith("train/")]
  assert made["fisher"] == made["dampened"] == 1


def changed(run, stage):
  """Returns the names of the parameters that a request changed."""
  before, after = run.merged[stage], run.merged[stage + 1]
  return {
    name
    for name in before
    if name.startswith("params/")
    and not np.array_equal(before[name], after[name])
  }


def test_head_stays_and_much_else_is_dampened(run):
  for stage in range(3):
    names = changed(run, stage)
    assert len(names) > 5
    assert not [name for name in names if name.startswith("params/head/")]
  assert any("head" in name for name in run.merged[0])


def test_layers_may_be_fewer(tmp_path):
  config = tiny(
    "ssd",
    method__select=1.5,
    method__layers=".*/Dense_1/kernel",
    scenario__num_requests=1,
  )
  seen = watch(config, tmp_path)
  assert changed(seen, 0) == {
    "params/Transformer/encoderblock_0/MlpBlock_0/Dense_1/kernel"
  }


def test_request_dampens_by_its_own_information(run):
  """Both Fisher informations anew, from single batches on one device."""
  method = run.run.method
  before, after = run.merged[1], run.merged[2]
  names = [n.removeprefix("params/") for n in before if "params/" in n]
  tree = jax.tree.unflatten(
    jax.tree.structure(run.state.params),
    [jnp.asarray(before[f"params/{name}"]) for name in names],
  )
  data = run.run.data(run.run.scenario.stages[1])

  @jax.jit
  def gradient(image, label):
    batch = {"image": image, "label": label}
    known = {"known": jnp.ones(method.num_classes, bool)}
    weights = jnp.full(len(label), 1 / len(label))
    return method.gradient(tree, known, batch, names=names, weights=weights)

  def information(role):
    total, count = dict.fromkeys(names, 0.0), 0
    for batch in data.sweep(data.train[role]):
      assert batch["mask"].all()
      found = gradient(batch["image"], batch["label"])
      count += len(batch["label"])
      for name, grad in found.items():
        total[name] = total[name] + len(batch["label"]) * np.float64(grad) ** 2
    return total, count

  (goes, n), (stays, m) = information("forget"), information("retain")
  assert (n, m) == (8, 32)
  for name in names:
    if name.startswith("head/"):
      continue
    f, d = goes[name] / n, (goes[name] + stays[name]) / (n + m)
    factor = np.where(f > 1.5 * d, d / np.where(f > 0, f, 1), 1.0)
    wanted = np.float64(before[f"params/{name}"]) * factor
    clear = abs(f - 1.5 * d) > 1e-3 * d
    found = after[f"params/{name}"]
    np.testing.assert_allclose(
      found[clear], wanted[clear], rtol=1e-3, atol=1e-7, err_msg=name
    )


# What a user gets wrong.


@pytest.mark.parametrize("name", ["select", "dampen"])
def test_numbers_must_be_above_0(name):
  with pytest.raises(ValueError, match=rf"{name}=0.0 must be .* above 0"):
    build(**{name: 0.0})


def test_selection_that_no_weight_can_reach_is_refused(tmp_path):
  # 8 of 48, 40 and 32 images go.
  message = r"select=4.0 selects no weight in stage 3: with 8 of 32 .*below 4;"
  with pytest.raises(ValueError, match=message):
    main.execute(tiny("ssd", method__select=4.0), tmp_path)
  stage = types.SimpleNamespace(
    index=0, train={"forget": range(8), "retain": range(24)}
  )
  build(select=3.99).check(types.SimpleNamespace(stages=[stage]))
