"""Updates in subspaces, Adam's two epsilons, and the rates beside them."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from libml import optim
from libml.optim import projection
from libml.optim import schedules

RNG = np.random.default_rng(0)
UPDATES = {
  "a": jnp.float32(RNG.normal(size=(4, 3))),
  "block": {"b": jnp.float32(RNG.normal(size=(3, 5)))},
  "bias": jnp.float32(RNG.normal(size=3)),
}
L4, L3, R3, R5 = (jnp.float32(RNG.normal(size=(n, n))) for n in (4, 3, 3, 5))


def project(updates=UPDATES, **factors):
  tx = projection.project_updates()
  return tx.update(updates, tx.init(updates), **factors)[0]


def test_passes_through_without_factors():
  for factors in ({}, {"left": None}, {"left": {}, "right": {"block": {}}}):
    found = project(**factors)
    jax.tree.map(np.testing.assert_array_equal, found, UPDATES)


# Name -> factors, what they make of "a" and of "block/b".
SIDES = {
  "left": (
    {"left": {"a": L4}},
    lambda a, b: (np.float64(L4) @ a, b),
  ),
  "right": (
    {"right": {"block": {"b": R5}}},
    lambda a, b: (a, b @ np.float64(R5)),
  ),
  "one each": (
    {"left": {"a": L4}, "right": {"block": {"b": R5}}},
    lambda a, b: (np.float64(L4) @ a, b @ np.float64(R5)),
  ),
  "both": (
    {"left": {"a": L4, "block": {"b": L3}}, "right": {"a": R3}},
    lambda a, b: (np.float64(L4) @ a @ np.float64(R3), np.float64(L3) @ b),
  ),
}


@pytest.mark.parametrize(("factors", "expected"), SIDES.values(), ids=SIDES)
def test_multiplies_on_either_side(factors, expected):
  found = project(**factors)
  a, b = expected(np.float64(UPDATES["a"]), np.float64(UPDATES["block"]["b"]))
  np.testing.assert_allclose(found["a"], a, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found["block"]["b"], b, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(found["bias"], UPDATES["bias"])


def test_serves_one_group_of_a_partition():
  first = jnp.diag(jnp.array([1.0, 0, 0, 0]))
  tx = optax.partition(
    {
      "low": optax.chain(optax.sgd(1.0), projection.project_updates()),
      "rest": optax.sgd(1.0),
    },
    {"a": "low", "block": {"b": "rest"}, "bias": "rest"},
  )
  found, _ = tx.update(
    UPDATES, tx.init(UPDATES), UPDATES, left={"a": first, "block": {"b": L3}}
  )
  np.testing.assert_array_equal(found["a"][0], -UPDATES["a"][0])
  assert (found["a"][1:] == 0).all()
  np.testing.assert_array_equal(found["block"]["b"], -UPDATES["block"]["b"])
  masked = optax.masked(
    projection.project_updates(), {"a": False, "block": True, "bias": False}
  )
  found, _ = masked.update(
    UPDATES, masked.init(UPDATES), left={"a": first, "block": {"b": 2 * L3}}
  )
  np.testing.assert_array_equal(found["a"], UPDATES["a"])
  np.testing.assert_allclose(
    found["block"]["b"], 2 * L3 @ UPDATES["block"]["b"], rtol=1e-5
  )


MISFITS = {
  "left": ({"left": {"a": L3}}, r"'a'.*\(3, 3\) times \(4, 3\)"),
  "right": ({"right": {"a": R5}}, r"'a'.*\(4, 3\) times \(5, 5\)"),
  "vector": ({"left": {"bias": L3}}, r"'bias'.*\(3, 3\) times \(3,\)"),
  "basis": ({"left": {"block": {"b": L4[:, :3]}}}, r"'block/b'.*\(4, 3\)"),
  "one row": ({"left": {"a": L4[:1]}}, r"'a'.*\(1, 4\) times \(4, 3\)"),
}


@pytest.mark.parametrize(("factors", "message"), MISFITS.values(), ids=MISFITS)
def test_factor_of_another_shape_is_named(factors, message):
  with pytest.raises(ValueError, match=f"{message}.*a left factor of a param"):
    project(**factors)


def test_is_compiled_once_for_factors_that_change():
  traced = []

  @jax.jit
  def step(updates, left):
    traced.append(True)
    return project(updates, left={"a": left})["a"]

  for factor in (L4, jnp.eye(4), jnp.zeros((4, 4))):
    found = step(UPDATES, factor)
    np.testing.assert_allclose(found, factor @ UPDATES["a"], atol=1e-5)
  assert len(traced) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_update_keeps_its_type_and_float32_its_digits(dtype):
  u, left = UPDATES["a"].astype(dtype), L4.astype(dtype)
  found = project({"a": u}, left={"a": left})["a"]
  assert found.dtype == dtype
  exact = np.float64(left) @ np.float64(u)
  rounded = jnp.float32(exact).astype(dtype)
  np.testing.assert_allclose(
    np.float64(found), np.float64(rounded), rtol=float(jnp.finfo(dtype).eps)
  )


def test_half_precision_update_keeps_its_type_by_a_float32_factor():
  u = UPDATES["a"].astype("bfloat16")
  found = project({"a": u}, left={"a": L4}, right={"a": R3})["a"]
  assert found.dtype == jnp.bfloat16
  exact = np.float64(L4) @ np.float64(u) @ np.float64(R3)
  np.testing.assert_allclose(np.float64(found), exact, rtol=2**-8, atol=1e-5)


def test_example_of_the_docstring_runs():
  found = doctest.testmod(projection)
  assert found.attempted > 5 and found.failed == 0


def adam_steps(grads, project_on, left):
  """Returns the updates of Adam in a group that names what is projected."""
  tx = optim.group_transform(
    name="adam", lr=0.1, epochs=1, project=project_on, epsilon_hat=True
  )
  state = tx.init(grads[0])
  for grad in grads:
    updates, state = tx.update(grad, state, grad, epoch=1.0, left={"a": left})
  return updates["a"]


def test_update_or_gradient_is_projected():
  grads = [{"a": jnp.float32(RNG.normal(size=(4, 3)))} for _ in range(3)]
  v, _ = np.linalg.qr(RNG.normal(size=(4, 2)))
  space = jnp.float32(v @ v.T)
  free = adam_steps(grads, None, space)
  update = adam_steps(grads, "update", space)
  gradient = adam_steps(grads, "gradient", space)
  np.testing.assert_allclose(update, space @ free, atol=1e-6)
  inside = [{"a": space @ grad["a"]} for grad in grads]
  np.testing.assert_allclose(gradient, adam_steps(inside, None, space))
  outside = jnp.eye(4) - space
  assert abs(outside @ update).max() < 1e-6
  assert abs(outside @ gradient).max() > 1e-2, "Adam leaves the subspace"


def closed_form(grads, l2=0.0, params=0.0, b1=0.9, b2=0.999, eps=1e-8):
  """Returns Adam's directions with epsilon before the bias correction."""
  m = v = 0.0
  for s, grad in enumerate(grads, start=1):
    g = np.float64(grad) + l2 * params
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    rate = np.sqrt(1 - b2**s) / (1 - b1**s)
    yield rate * m / (np.sqrt(v) + eps)


def run(tx, grads, params=None):
  tx = optax.with_extra_args_support(tx)
  state, found = tx.init(grads[0]), []
  for grad in grads:
    updates, state = tx.update(grad, state, params, epoch=1.0)
    found.append(updates)
  return found


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-7, 1e-9])
def test_adam_epsilon_hat_equals_its_closed_form(size):
  grads = [jnp.float32(size * RNG.normal(size=(4, 3))) for _ in range(5)]
  grads[0] = grads[0].at[0].set(0)  # lora_a's, as long as B is 0
  found = run(projection.scale_by_adam_epsilon_hat(), grads)
  assert (found[0][0] == 0).all()
  for ours, theirs in zip(found, closed_form(grads), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-7)


def test_coupled_decay_joins_the_gradient():
  grads = [jnp.float32(RNG.normal(size=(4, 3))) for _ in range(4)]
  params = jnp.float32(RNG.normal(size=(4, 3)))
  tx = optim.group_transform(
    name="adam", lr=0.1, epochs=1, epsilon_hat=True, l2=0.01
  )
  expected = closed_form(grads, 0.01, np.float64(params))
  for ours, theirs in zip(run(tx, grads, params), expected, strict=True):
    np.testing.assert_allclose(ours, -0.1 * theirs, rtol=2e-5)


# |gradient| -> how much larger optax.adam's first step is, less 1.
RATIOS = {1e-3: 3e-4, 1e-4: 3e-3, 2e-7: 1.46, 5e-8: 5.1, 1e-9: 28.8}


@pytest.mark.parametrize(("size", "above"), RATIOS.items())
def test_adam_of_optax_takes_larger_steps_of_small_gradients(size, above):
  grad = [jnp.full((2, 2), size, jnp.float32)]
  (hat,) = run(projection.scale_by_adam_epsilon_hat(), grad)
  (theirs,) = run(optax.scale_by_adam(), grad)
  np.testing.assert_allclose(theirs / hat - 1, above, rtol=0.06)


def test_moments_are_saved_under_optax_s_names():
  tx = projection.scale_by_adam_epsilon_hat()
  ours, theirs = tx.init(UPDATES), optax.scale_by_adam().init(UPDATES)
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)


LENGTHS = {"1": (1, 1), "2": (2, 2), "20": (20, 20), "40 of 50": (50, 40)}


@pytest.mark.parametrize(("length", "epochs"), LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(("name", "late"), [
  ("quarter_cosine", 0), ("late_quarter_cosine", 1),
])  # fmt: skip
def test_quarter_cosine_changes_after_each_epoch(name, late, length, epochs):
  rate = schedules.build(name, lr=5e-4, epochs=length)
  per_epoch = 7
  steps = jnp.arange(1, epochs * per_epoch + 1)
  found = np.array(jax.vmap(rate)(steps / per_epoch)).reshape(epochs, per_epoch)
  e = np.maximum(np.arange(epochs) - late, 0)
  expected = 5e-4 * np.cos(99 * np.pi * e / (200 * max(length - 1, 1)))
  np.testing.assert_allclose(found, expected[:, None] + 0 * found, rtol=2e-5)


ENDS = {
  "20": ("late_quarter_cosine", 20, 19, 0.0974),
  "20, one before": ("late_quarter_cosine", 20, 18, 0.178),
  "20, as meant": ("quarter_cosine", 20, 19, 0.0157),
  "40 of 50": ("late_quarter_cosine", 50, 39, 0.357),
}


@pytest.mark.parametrize(
  ("name", "length", "epoch", "share"), ENDS.values(), ids=ENDS
)
def test_quarter_cosine_ends_where_the_reference_does(
  name, length, epoch, share
):
  rate = schedules.build(name, lr=1.0, epochs=length)
  np.testing.assert_allclose(rate(epoch + 0.5), share, atol=5e-4)


def test_quarter_cosine_is_never_negative():
  rate = schedules.build("late_quarter_cosine", lr=1.0, epochs=5)
  assert rate(9.0) == 0.0
