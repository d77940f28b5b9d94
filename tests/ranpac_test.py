"""RanPAC's sums, choice of the ridge and weights, against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from walks import Watcher

import main
from configs import digits_reference
from libml.train.walk import Interrupted
from methods import ranpac

GRID = tuple(10.0**n for n in range(-8, 9))


def execute(workdir, num_tasks=3, devices=2, should_stop=lambda: False):
  """Runs the smoke config; returns the run, its last state and results."""
  config = digits_reference.get_config("smoke,method=ranpac")
  config.scenario.num_tasks = num_tasks
  config.model.depth = 1

  mesh = jax.make_mesh(
    (devices, 1),
    ("data", "model"),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:devices],
  )
  seen = Watcher()
  seen.record = main.execute(
    config, workdir, should_stop, mesh=mesh, observer=seen
  )
  return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
  """Returns three tasks on two devices."""
  return execute(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def images(seen):
  """Returns h, one-hot labels and the choice of every training image."""
  method, params = seen.run.method, jax.device_get(seen.state.params)
  rows = []
  for stage in seen.run.scenario.stages:
    for batch in seen.run.data(stage).sweep(stage.train[stage.goal]):
      features = method.apply(params, batch)["features"]
      held_out = ranpac.is_held_out(batch["image"])
      found = (features, batch["label"], held_out)
      rows.append([np.asarray(x)[batch["mask"]] for x in found])
  features, label, held_out = map(np.concatenate, zip(*rows, strict=True))
  kernel = np.float64(params["random_projection"]["kernel"])
  return np.maximum(features @ kernel, 0), np.eye(6)[label], held_out


def regression(hidden, target, ridge):
  """Returns the weights of a ridge regression in float64."""
  gram = hidden.T @ hidden + ridge * np.eye(hidden.shape[1])
  return np.linalg.solve(gram, hidden.T @ target)


def errors(hidden, target, held_out, grid):
  """Returns each ridge's mean squared error on the images held out."""
  found = []
  for ridge in grid:
    weights = regression(hidden[~held_out], target[~held_out], ridge)
    residual = target[held_out] - hidden[held_out] @ weights
    found.append((residual**2).sum(axis=1).mean())
  return np.array(found)


def sums(hidden, target):
  """Returns what memory holds of one part."""
  return {
    "gram": jnp.float32(hidden.T @ hidden),
    "prototypes": jnp.float32(hidden.T @ target),
    "counts": jnp.float32(target.sum(axis=0)),
  }


def test_sums_are_those_of_the_images(seen, images):
  hidden, target, held_out = images
  for name, rows in (("fit", ~held_out), ("held_out", held_out)):
    assert rows.any()
    expected = sums(hidden[rows], target[rows])
    for key, value in seen.state.memory[name].items():
      np.testing.assert_allclose(value, expected[key], rtol=1e-4, atol=1e-4)


def test_weights_are_a_ridge_regression_on_all_images(seen, images):
  hidden, target, _ = images
  memory = seen.state.memory
  expected = regression(hidden, target, float(memory["ridge"]))
  np.testing.assert_allclose(memory["weights"], expected, rtol=1e-3, atol=1e-5)


def test_ridge_is_the_best_for_the_images_held_out(seen, images):
  ridge = float(seen.state.memory["ridge"])
  found = dict(zip(GRID, errors(*images, GRID), strict=True))
  near = [
    float(np.float32(r)) for r in GRID if found[r] < 1.01 * min(found.values())
  ]
  assert ridge == max(near)
  ends = found[GRID[0]], found[GRID[-1]]
  assert min(ends) > 1.05 * min(found.values()), "neither end is as good"


def test_cutting_into_tasks_and_devices_changes_nothing(seen, tmp_path):
  alone = execute(tmp_path, num_tasks=1, devices=1)
  ours, theirs = jax.device_get((seen.state.memory, alone.state.memory))
  for name in ("gram", "prototypes", "counts"):
    for part in ("fit", "held_out"):
      np.testing.assert_allclose(ours[part][name], theirs[part][name], 1e-5)
  assert ours["ridge"] == theirs["ridge"]
  np.testing.assert_allclose(
    ours["weights"], theirs["weights"], rtol=1e-3, atol=1e-4
  )


def test_projection_survives_a_stop(seen, tmp_path):
  asked = iter(range(100))
  with pytest.raises(Interrupted):
    execute(tmp_path, should_stop=lambda: next(asked) == 8)
  again = execute(tmp_path)
  ours, theirs = (
    {"params": s.params, "memory": s.memory} for s in (again.state, seen.state)
  )
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  assert again.record["matrix"] == seen.record["matrix"]


@pytest.mark.parametrize("noise", [0.01, 0.3, 10.0])
def test_choice_equals_brute_force(noise):
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(100, 40))
  target = hidden @ rng.normal(size=(40, 3))
  target += noise * rng.normal(size=target.shape)
  target /= np.linalg.norm(target, axis=1, keepdims=True)  # as one-hot labels
  held_out = np.arange(100) % 5 == 0
  found = errors(hidden, target, held_out, GRID)
  parts = []
  for rows in (~held_out, held_out):
    parts.append(sums(hidden[rows], target[rows]))
    parts[-1]["counts"] = jnp.float32([rows.sum(), 0, 0])
  weights, ridge = jax.jit(ranpac.fit_weights, static_argnums=2)(*parts, GRID)
  near = [
    r for r, error in zip(GRID, found, strict=True) if error < 1.01 * min(found)
  ]
  assert float(ridge) == np.float32(max(near))
  np.testing.assert_allclose(
    weights, regression(hidden, target, ridge), rtol=1e-3, atol=1e-5
  )
  for place in (7, 10, 16):
    fitted = regression(hidden[~held_out], target[~held_out], GRID[place])
    error = ranpac.held_out_error(jnp.float32(fitted), parts[1])
    np.testing.assert_allclose(error, found[place], rtol=1e-4)


def parts(*diagonals):
  """Returns sums whose Gram matrices have these diagonals."""
  return [
    {
      "gram": jnp.diag(jnp.float32(diagonal)),
      "prototypes": jnp.ones((2, 3)),
      "counts": jnp.float32([1, 1, 0]),
    }
    for diagonal in diagonals
  ]


def test_ridge_that_fails_loses():
  fit, held_out = parts([4.0, -0.5], [1.0, 1.0])
  _, ridge = ranpac.fit_weights(fit, held_out, (0.1, 1.0, 10.0))
  assert ridge in (1.0, 10.0), "0.1 leaves a matrix that is not definite"
  _, ridge = ranpac.fit_weights(fit, held_out, (0.1, 0.2))
  assert ridge == np.float32(0.2), "all fail where they choose: the largest"


def test_ridge_that_fails_with_all_images_makes_room_for_a_larger_one():
  fit, held_out = parts([1.0, 1.0], [1.0, 1.0])
  held_out["prototypes"] *= 0.4  # so small weights, so the ridge 1
  _, ridge = ranpac.fit_weights(fit, held_out, (0.01, 1.0, 100.0))
  assert ridge == 1.0
  held_out["gram"] = jnp.diag(jnp.float32([1.0, -5.0]))
  weights, ridge = ranpac.fit_weights(fit, held_out, (0.01, 1.0, 100.0))
  assert ridge == 100 and jnp.isfinite(weights).all()


def test_without_an_image_held_out_the_ridge_is_the_largest():
  fit, held_out = parts([1.0, 2.0], [0.0, 0.0])
  held_out = jax.tree.map(jnp.zeros_like, held_out)
  weights, ridge = ranpac.fit_weights(fit, held_out, (0.5, 3.0, 1.0))
  assert ridge == 3
  np.testing.assert_allclose(weights[:, 0], [1 / 4, 1 / 5], rtol=1e-6)


def test_features_that_are_not_finite_stop_the_run(seen):
  run = seen.run
  params = jax.tree.map(lambda p: p * np.nan, seen.state.params)
  memory = run.method.init_memory(params, None)
  state = seen.state.replace(params=params, memory=memory)
  stage = run.scenario.stages[0]
  with pytest.raises(FloatingPointError, match="No ridge in method.ridges="):
    run.method.after_stage(state, stage, run.data(stage))


def test_a_fifth_is_held_out_by_what_it_shows():
  rng = np.random.default_rng(0)
  image = jnp.float32(rng.integers(0, 2, (1000, 8, 8, 3)))
  held_out = ranpac.is_held_out(image)
  assert 0.15 < held_out.mean() < 0.25
  order = rng.permutation(1000)
  np.testing.assert_array_equal(
    ranpac.is_held_out(image[order]), held_out[order]
  )
  turned = ranpac.is_held_out(image[:, ::-1])
  assert 0.2 < (turned != held_out).mean() < 0.45, "it knows where pixels are"


@pytest.mark.parametrize("chooses", [False, True])
def test_class_of_one_image_is_known(seen, chooses):
  method, params = seen.run.method, jax.device_get(seen.state.params)
  rng = np.random.default_rng(0)
  image = jnp.float32(rng.normal(size=(40, 8, 8, 3)))
  held_out = ranpac.is_held_out(image)
  single = int(jnp.flatnonzero(held_out == chooses)[0])
  label = jnp.zeros(40, jnp.int32).at[single].set(4)
  batch = {"image": image, "label": label, "mask": jnp.arange(40) < 39}
  memory = method.init_memory(params, None)
  memory = method.solve(memory, method.part_sums(params, memory, batch))
  part = memory["held_out" if chooses else "fit"]
  assert part["counts"][4] == 1
  assert (
    memory["fit"]["counts"].sum() + memory["held_out"]["counts"].sum() == 39
  )
  assert jnp.isfinite(memory["weights"]).all()
  batch |= method.precompute(params, memory, batch)
  logits = method.predict(params, memory, batch)[""]["logits"]
  assert set(np.argmax(logits, axis=1).tolist()) <= {0, 4}
  assert logits[single, 4] > logits[0 if single else 1, 4]


def test_class_without_an_image_never_wins(seen):
  method, params = seen.run.method, jax.device_get(seen.state.params)
  memory = method.init_memory(params, None)
  # All known classes answer with less than the 0 of a class without weights.
  memory["weights"] -= 1.0
  memory["weights"] = memory["weights"].at[:, 3:].set(0.0)
  memory["fit"]["counts"] = jnp.float32([0, 2, 0, 0, 0, 0])
  memory["held_out"]["counts"] = jnp.float32([0, 0, 1, 0, 0, 0])
  batch = {"features": jnp.ones((4, method.model.width))}
  logits = method.predict(params, memory, batch)[""]["logits"]
  assert jnp.isfinite(logits).all()
  assert (logits[:, 1:3] < 0).all()
  assert set(np.argmax(logits, axis=1).tolist()) <= {1, 2}


BAD = {
  "no_features": ({"projection_dim": 0}, "projection_dim=0 must be at least 1"),
  "no_ridge": ({"ridges": ()}, r"ridges=\(\) must be one or more"),
  "zero": ({"ridges": (1.0, 0.0)}, r"ridges=\(1.0, 0.0\) .*above 0"),
  "endless": ({"ridges": (float("inf"),)}, "finite numbers"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_options_are_named(options, message):
  config = digits_reference.get_config("smoke,method=ranpac")
  config.method.update(options)
  with pytest.raises(ValueError, match=message):
    main.build_method(config, 6, 3)
