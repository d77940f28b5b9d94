"""The proximal step: its operator, what it equals, and what it refuses."""

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from proximal_toy import BY_BLOCK
from proximal_toy import GRADS
from proximal_toy import PARAMS
from proximal_toy import assert_same
from proximal_toy import lasso
from proximal_toy import leaf
from proximal_toy import run

from libml.optim import group_lasso
from libml.optim import proximal
from libml.optim import shrinkage


def test_example_of_the_docstring_runs():
  found = doctest.testmod(proximal)
  assert found.attempted > 5 and found.failed == 0


def test_solution_is_stationary_in_random_cases():
  rng = np.random.default_rng(1)
  cases, size = 300, 40
  h = 10 ** (rng.uniform(0, 6, (cases, 1)) * rng.uniform(-1, 0, (cases, size)))
  y = rng.normal(size=(cases, size))
  slope = np.linalg.norm(h * y, axis=1)
  threshold = slope * rng.uniform(0.001, 1.1, cases)
  with jax.enable_x64():
    z = np.array(jax.vmap(shrinkage.metric_prox)(y, h, threshold))
  zero = slope <= threshold
  assert 10 < zero.sum() < cases / 2
  assert not z[zero].any()
  y, h, threshold, z = (a[~zero] for a in (y, h, threshold[:, None], z))
  pull = threshold * z / np.linalg.norm(z, axis=1, keepdims=True)
  residual = np.linalg.norm(h * (z - y) + pull, axis=1)
  assert (residual < 1e-12 * slope[~zero]).all()


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1.0, 1e20])
def test_only_the_ratio_of_metric_and_threshold_counts(scale):
  y, h = leaf(30), jnp.exp(3 * leaf(30))
  z = shrinkage.metric_prox(y, h, 5.0)
  assert 0 < abs(z).max() < abs(y).max()
  found = shrinkage.metric_prox(y, scale * h, 5.0 * scale)
  np.testing.assert_allclose(found, z, rtol=2e-5)


def test_operator_keeps_type_and_structure():
  y = {"a": leaf(3), "b": [jnp.bfloat16(leaf(2, 2))]}
  for found in (
    shrinkage.metric_prox(y, jax.tree.map(jnp.ones_like, y), 0.5),
    shrinkage.soft_threshold(y, 0.5),
  ):
    assert found["a"].dtype == "float32" and found["a"].shape == (3,)
    assert found["b"][0].dtype == "bfloat16"
  assert_same(shrinkage.soft_threshold(y, 0.0), y, rtol=0)


def test_constant_metric_is_the_block_soft_threshold():
  y = {"a": leaf(3, 4), "b": leaf(5)}
  h = jax.tree.map(lambda a: jnp.full_like(a, 0.01), y)
  for threshold in (0.02, 0.05, 0.1):
    found = shrinkage.metric_prox(y, h, threshold, updates=3)
    expected = shrinkage.soft_threshold(y, threshold / 0.01)
    assert_same(found, expected, rtol=1e-5)
  # Adam's first step on gradients of one size has a constant metric.
  grads = [jax.tree.map(lambda p: 0.3 * jnp.sign(p), PARAMS)]
  ((params, _),) = run(lasso(), grads=grads)
  ((moved, _),) = run(optax.adamw(0.1, weight_decay=0.0), grads=grads)
  for i in range(3):
    expected = shrinkage.soft_threshold(moved[f"block_{i}"], 0.1 * 0.05 / 0.3)
    assert_same(params[f"block_{i}"], expected, rtol=1e-5, atol=1e-7)


RATE = optax.cosine_decay_schedule(0.03, 4)
# Name -> ours without a penalty, and whose steps it takes.
UNPENALIZED = {
  "adam": (lasso(0.03, 0), optax.adam(0.03)),
  "adamw": (
    lasso(RATE, 0.0, b1=0.8, b2=0.99, eps=1e-6, weight_decay=0.1),
    optax.adamw(RATE, b1=0.8, b2=0.99, eps=1e-6, weight_decay=0.1),
  ),
  "sgd": (
    proximal.proximal_group_lasso_sgd(RATE, 0.0, BY_BLOCK),
    optax.sgd(RATE),
  ),
  "nesterov": (
    proximal.proximal_group_lasso_sgd(
      0.03, 0.0, BY_BLOCK, momentum=0.9, nesterov=True
    ),
    optax.sgd(0.03, momentum=0.9, nesterov=True),
  ),
  "decoupled": (
    optax.chain(
      optax.adamw(0.03), proximal.decoupled_group_lasso(0.03, 0.0, BY_BLOCK)
    ),
    optax.adamw(0.03),
  ),
}


@pytest.mark.parametrize(
  ("ours", "theirs"), UNPENALIZED.values(), ids=UNPENALIZED
)
def test_without_penalty_it_is_optax_s_bit_for_bit(ours, theirs):
  for (found, _), (expected, _) in zip(run(ours), run(theirs), strict=True):
    assert_same(found, expected, rtol=0)


def test_parameters_without_a_group_take_plain_steps():
  found, state = run(lasso(alpha=1e3, weight_decay=0.1))[-1]
  expected, _ = run(optax.adamw(0.1, weight_decay=0.1))[-1]
  np.testing.assert_array_equal(found["head"], expected["head"])
  assert state.zero_groups == 3
  assert all(group_lasso.zeros(found, BY_BLOCK).values())


def test_average_equals_the_trace_at_its_own_rate():
  for nesterov in (False, True):
    sgd = functools.partial(
      proximal.proximal_group_lasso_sgd,
      groups=BY_BLOCK,
      momentum=0.8,
      nesterov=nesterov,
    )
    average = run(sgd(0.1, 1.0, accumulator="ema"))
    trace = run(sgd(0.1 * (1 - 0.8), 1.0))
    assert int(average[-1][1].zero_groups) == 1
    for (ours, _), (theirs, _) in zip(average, trace, strict=True):
      assert_same(ours, theirs, rtol=1e-5, atol=1e-6)


def test_decoupled_step_is_the_threshold_of_another_s_step():
  tx = optax.chain(
    optax.adam(0.1), proximal.decoupled_group_lasso(0.1, 2.0, BY_BLOCK)
  )
  zero = jax.tree.map(jnp.zeros_like, PARAMS)
  seen = run(tx, grads=[zero] * 3)
  before = group_lasso.norms(PARAMS, BY_BLOCK)
  after = group_lasso.norms(seen[-1][0], BY_BLOCK)
  for group in ("block_0", "block_1"):
    np.testing.assert_allclose(before[group] - after[group], 0.6, rtol=1e-5)
  assert after["block_2"] == 0 and seen[-1][1][1].zero_groups == 1


def test_alpha_of_update_wins_and_compiles_nothing_anew():
  tx, traced = lasso(alpha=0.0), []

  @jax.jit
  def step(alpha):
    traced.append(True)
    _, state = tx.update(
      GRADS[0], tx.init(PARAMS), PARAMS, alpha=alpha, unknown=alpha
    )
    return state.zero_groups

  counts = [int(step(jnp.float32(a))) for a in (0.0, 0.05, 1e3)]
  assert counts == [0, 1, 3] and len(traced) == 1


def test_schedules_count_updates_or_follow_a_clock():
  late = optax.piecewise_constant_schedule(1.0, {2: 0.5})

  def on(step):
    return jnp.where(step >= 2, 0.05, 0.0)

  counted = run(lasso(lambda step: 0.1 * late(step), on))
  assert [int(s.zero_groups) for _, s in counted] == [0, 0, 1, 1]
  np.testing.assert_allclose(
    [s.learning_rate for _, s in counted], [0.1, 0.1, 0.05, 0.05]
  )
  clocked = lasso(lambda epoch: 0.1 * epoch, on, clock="epoch")
  for epoch, zeros in ((1.0, 0), (2.0, 1)):
    _, state = run(clocked, grads=GRADS[:1], epoch=jnp.float32(epoch))[0]
    assert state.zero_groups == zeros
    np.testing.assert_allclose(state.learning_rate, 0.1 * epoch, rtol=1e-6)
  with pytest.raises(ValueError, match=r"'epoch' is not .* \['day'\]; pass"):
    run(clocked, grads=GRADS[:1], day=1.0)


SGD = proximal.proximal_group_lasso_sgd
BAD = {
  "alpha": (lasso, {"alpha": -0.1}, r"alpha=-0.1 must be at least 0"),
  "infinite alpha": (lasso, {"alpha": np.inf}, r"alpha=inf .* finite"),
  "rate": (lasso, {"rate": -1.0}, r"learning_rate=-1.0 .* give 0"),
  "updates": (lasso, {"updates": 0}, r"updates=0 .* at least 1; 8 is enough"),
  "weights": (lasso, {"weights": "size"}, r"weights 'size'.*one, sqrt_size"),
  "b2": (lasso, {"b2": 1.0}, r"b2=1.0 must be at least 0 and below 1"),
  "eps": (lasso, {"eps": 0.0}, r"eps=0.0 must be above 0"),
  "decay": (lasso, {"weight_decay": -0.1}, r"weight_decay=-0.1 .* at least 0"),
  "momentum": (
    functools.partial(SGD, 0.1, 0.1, BY_BLOCK),
    {"momentum": 1.0},
    r"momentum=1.0 must be at least 0 and below 1",
  ),
  "accumulator": (
    functools.partial(SGD, 0.1, 0.1, BY_BLOCK),
    {"accumulator": "mean"},
    r"accumulator 'mean'.*ema, trace",
  ),
}


@pytest.mark.parametrize(("make", "options", "message"), BAD.values(), ids=BAD)
def test_bad_options_are_named(make, options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_operator_refuses_no_updates():
  with pytest.raises(ValueError, match="updates=0"):
    shrinkage.metric_prox(leaf(2), jnp.ones(2), 0.1, updates=0)


def test_penalty_that_reaches_no_parameter_is_refused():
  tx = proximal.proximal_group_lasso(0.1, 0.1, lambda name: None)
  with pytest.raises(ValueError, match="None of the 7 .*'block_0/a'.*let"):
    tx.init(PARAMS)


@pytest.mark.parametrize("where", ["block_0/a", "block_0/.*"])
def test_group_that_is_stacked_in_part_is_refused(where):
  tx = lasso(stacked=lambda name: group_lasso.by_pattern(f"({where})")(name))
  with pytest.raises(ValueError, match="'block_0' is stacked in part.*8, 3"):
    tx.init(PARAMS)


def test_step_without_parameters_is_refused():
  tx = lasso()
  with pytest.raises(ValueError, match="pass params"):
    tx.update(GRADS[0], tx.init(PARAMS))
