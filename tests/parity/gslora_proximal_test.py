"""The proximal step on stored cases (tests/golden/gslora/README.md)."""

import face_toy as toy
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from libml.optim import group_lasso
from libml.optim import proximal
from libml.optim import shrinkage

FIGURES = {
  "gslora/metric_prox": {
    "in/f64/spread": "how the metric was drawn; the metric is given",
    "in/f64/ratio": "lam / S as it was asked for; both are given",
  },
  "gslora/group_lasso": {},
}
STEPS = 20_000
ALPHAS = toy.stored("group_lasso")["in/f64/alpha"]
BY_GROUP = group_lasso.by_pattern(r"(group_\d+)(?:/.*)?")


@pytest.fixture(params=toy.TYPES)
def dtype(request):
  """Returns a type in which a test runs."""
  with toy.precision(request.param):
    yield request.param


def cut(array, offsets, dtype=None):
  """Returns the groups of a flat array by name, in the order of the names."""
  return {
    f"group_{i:04d}": jnp.asarray(array[a:b], dtype)
    for i, (a, b) in enumerate(zip(offsets[:-1], offsets[1:], strict=True))
  }


def whole(tree):
  return np.concatenate([np.asarray(leaf) for leaf in jax.tree.leaves(tree)])


def padded(groups, fill):
  """Returns groups as rows [G, N]; fill makes what follows a group's end."""
  size = max(map(len, groups))
  return np.stack(
    [np.pad(g, (0, size - len(g)), constant_values=fill(g)) for g in groups]
  )


def in_parts(rows):
  """Returns a group as a tree of leaves, so that norms span them."""
  half = len(rows) // 4 * 2
  middle = rows[1 : half + 1].reshape(2, -1)
  return {"a": rows[:1], "b": [middle, rows[half + 1 :]]}


@pytest.mark.parametrize("parts", [lambda leaf: [leaf], in_parts])
def test_operator(golden, dtype, parts):
  file = golden("gslora", "metric_prox")
  y, h, expected = (
    np.split(file[key], file["in/offsets"][1:-1])
    for key in ("in/y", "in/h", "out/operator/z")
  )

  def prox(y, h, threshold):
    z = shrinkage.metric_prox(parts(y), parts(h), threshold)
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(z)])

  # Entries that are 0, in a metric that the group has, change nothing.
  threshold = file["in/lam"].astype(dtype)
  found = jax.jit(jax.vmap(prox))(
    padded(y, lambda _: 0).astype(dtype),
    padded(h, lambda g: g[0]).astype(dtype),
    threshold,
  )
  found = np.asarray(found)
  assert found.dtype == dtype
  zero = file["out/operator/zero"]
  np.testing.assert_array_equal(~np.any(found, axis=1), zero)
  # S is what the threshold is compared with: where it is not more, z is 0.
  pairs = zip(h, y, strict=True)
  sums = [np.linalg.norm(np.float64(a) * b) for a, b in pairs]
  np.testing.assert_allclose(sums, file["out/operator/S"], rtol=1e-10)
  for i, exact in enumerate(expected):
    relative = 1e-10
    if dtype == "float32" and not zero[i]:
      left = 1 - file["in/lam"][i] / file["out/operator/S"][i]
      relative = 1e-6 + 1e-7 / left
    z = found[i, : len(exact)]
    np.testing.assert_allclose(
      z, exact, rtol=0, atol=relative * max(abs(exact))
    )
    length = file["out/operator/norm"][i]
    np.testing.assert_allclose(np.linalg.norm(z), length, rtol=relative)
    if file["in/lam"][i] == 0:
      np.testing.assert_array_equal(z, y[i])


def test_operator_is_the_least_of_its_objective(golden):
  file = golden("gslora", "metric_prox")
  lam = np.float64(file["in/lam"])
  groups = (
    np.split(np.float64(file[key]), file["in/offsets"][1:-1])
    for key in ("in/y", "in/h")
  )
  with toy.precision("float64"):
    for i, (y, h) in enumerate(zip(*groups, strict=True)):
      (z,) = shrinkage.metric_prox([jnp.asarray(y)], [jnp.asarray(h)], lam[i])
      z = np.asarray(z)
      value = 0.5 * np.sum(h * (z - y) ** 2) + lam[i] * np.linalg.norm(z)
      wanted = file["out/operator/objective"][i]
      np.testing.assert_allclose(value, wanted, rtol=1e-10, atol=1e-300)
      # The stored residual is what rounding leaves of 0; ours, too.
      left = h * (z - y) + lam[i] * z / max(np.linalg.norm(z), 1e-300)
      scale = max(lam[i], np.linalg.norm(h * y))
      assert file["out/operator/kkt_residual"][i] <= 1e-10 * scale
      if z.any():
        assert np.linalg.norm(left) <= 1e-10 * scale


def transforms(file):
  """Returns name -> transform of the file's five steps."""
  rates, alphas, alphas_sgd = (
    jnp.asarray(file[f"in/f64/steps/{k}"]).__getitem__
    for k in ("lr", "alpha", "alpha_sgd")
  )
  meta = toy.meta(file)["steps"]
  adam = meta["adamw"]

  def sgd(**options):
    return proximal.proximal_group_lasso_sgd(
      rates, alphas_sgd, BY_GROUP, **options
    )

  return {
    "adamw_one": proximal.proximal_group_lasso(rates, alphas, BY_GROUP, **adam),
    "adamw_sqrt": proximal.proximal_group_lasso(
      rates, alphas, BY_GROUP, weights="sqrt_size", **adam
    ),
    "sgd": sgd(),
    "trace": sgd(momentum=meta["sgd"]["trace_mu"]),
    "ema": sgd(momentum=meta["sgd"]["ema_mu"], accumulator="ema"),
  }


@pytest.mark.parametrize(
  "name", ["adamw_one", "adamw_sqrt", "sgd", "trace", "ema"]
)
def test_steps(golden, dtype, name):
  file = golden("gslora", "metric_prox")
  offsets = file["in/steps/offsets"]
  tx = transforms(file)[name]
  params = cut(file["in/steps/theta0"], offsets, dtype)
  state, update = tx.init(params), jax.jit(tx.update)
  for number, grad in enumerate(file["in/steps/grads"], start=1):
    updates, state = update(cut(grad, offsets, dtype), state, params)
    params = optax.apply_updates(params, updates)
    expected = file[f"after{number}/{name}"]
    # 1 - 0.999 in optax's correction of Adam has an error of 1e-5 in float32.
    tolerance = 1e-10 if dtype == "float64" else 3e-5
    np.testing.assert_allclose(
      whole(params), expected, rtol=0, atol=tolerance * abs(expected).max()
    )
    np.testing.assert_array_equal(whole(params) == 0, expected == 0)
    zero = [not g.any() for g in cut(expected, offsets).values()]
    assert state.zero_groups == sum(zero)
  rate = file["in/f64/steps/lr"][-1]
  np.testing.assert_allclose(state.learning_rate, rate, rtol=1e-6)


def problem(file):
  """Returns the smooth part of the objective of parameters by group."""
  x, y = (jnp.asarray(file[f"in/{k}"], "float64") for k in ("X", "y"))

  def loss(params):
    theta = jnp.concatenate(jax.tree.leaves(params))
    return 0.5 * jnp.mean(jnp.square(x @ theta - y))

  return loss


def solver(file, kind, alpha):
  """Returns the transform that takes the README's steps."""
  if kind == "adam":
    rate = optax.cosine_decay_schedule(1e-2, STEPS)
    return proximal.proximal_group_lasso(rate, alpha, BY_GROUP)
  rate = 0.05 / toy.meta(file)["lipschitz"]
  return proximal.proximal_group_lasso_sgd(rate, alpha, BY_GROUP, momentum=0.9)


# Distance from the optimum after the steps; the README has seen 3e-13, 6e-12.
@pytest.mark.parametrize("number", range(len(ALPHAS)))
@pytest.mark.parametrize(
  ("kind", "allowed"), [("adam", 1e-12), ("trace", 1e-11)]
)
def test_the_optimum_of_a_group_lasso_is_reached(golden, number, kind, allowed):
  file = golden("gslora", "group_lasso")
  out = f"out/alpha{number}/"
  alpha = float(file["in/f64/alpha"][number])
  with toy.precision("float64"):
    loss, tx = problem(file), solver(file, kind, alpha)

    def step(_, carry):
      params, state = carry
      updates, state = tx.update(jax.grad(loss)(params), state, params)
      return optax.apply_updates(params, updates), state

    start = cut(file["in/f64/start"], file["in/offsets"])
    params, state = jax.jit(
      lambda p: jax.lax.fori_loop(0, STEPS, step, (p, tx.init(p)))
    )(start)
    value = loss(params) + alpha * group_lasso.penalty(params, BY_GROUP)
    slopes = group_lasso.norms(jax.grad(loss)(params), BY_GROUP)
  np.testing.assert_allclose(
    whole(params), file[f"{out}theta"], rtol=0, atol=allowed
  )
  np.testing.assert_allclose(value, file[f"{out}objective"], rtol=1e-13)
  slopes = np.array([slopes[group] for group in params])
  wanted = file[f"{out}gradient_norm"]
  # A gradient is as far off as the steps end from the optimum.
  off = toy.meta(file)["lipschitz"] * allowed
  np.testing.assert_allclose(slopes, wanted, rtol=0, atol=off)
  zero = np.array([not leaf.any() for leaf in params.values()])
  np.testing.assert_array_equal(zero, file[f"{out}zero"])
  assert state.zero_groups == sum(zero)
  # The optimality condition: where a group is not 0, the norm is alpha.
  assert abs(slopes[~zero] - alpha).max(initial=0) < off
  assert file[f"{out}kkt_residual"] < 1e-13
