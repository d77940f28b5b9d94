"""The proximal step in other trees, types and wrappers, on other devices."""

import children
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from proximal_toy import BY_BLOCK
from proximal_toy import GRADS
from proximal_toy import PARAMS
from proximal_toy import all_zero
from proximal_toy import assert_same
from proximal_toy import lasso
from proximal_toy import run

from libml import trees
from libml.devices import sharding
from libml.optim import group_lasso
from libml.optim import proximal


def edit(params, x, y):
  """Returns the error of a sum of products, as adapters make it."""
  total = sum(params[f"block_{i}"]["a"] @ params[f"block_{i}"]["dense"]["b"]
              for i in range(3))  # fmt: skip
  return jnp.mean(jnp.square(x @ total - y))


def descend(steps, params=PARAMS):
  """Returns counts of zero groups, the last parameters and gradients."""
  rng = np.random.default_rng(2)
  x = jnp.float32(rng.normal(size=(64, 8)))
  y = x @ PARAMS["block_0"]["a"] @ PARAMS["block_0"]["dense"]["b"]
  # Both factors at zero never leave it, so b must not be small when it starts.
  tx = lasso(0.02, lambda count: jnp.where(count < 20, 0.0, 0.2))
  slope = jax.grad(edit)

  def step(carry, _):
    params, state = carry
    updates, state = tx.update(slope(params, x, y), state, params)
    return (optax.apply_updates(params, updates), state), state.zero_groups

  @jax.jit
  def descent(params):
    carry, counts = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return carry[0], counts

  params, counts = descent(params)
  return np.array(counts), params, slope(params, x, y)


def test_zero_is_final_where_a_and_b_are_one_group():
  counts, params, grads = descend(100)
  assert not counts[:20].any() and counts[-1] in (1, 2)
  assert (np.diff(counts) >= 0).all(), "a zero group came back"
  for group, zero in group_lasso.zeros(params, BY_BLOCK).items():
    assert zero == all_zero(grads[group])


def descend_on_all_devices(file):
  """Writes what `descend` finds with parameters cut over all devices."""
  mesh = sharding.make_mesh()
  placed = sharding.place(PARAMS, [(".*", "fsdp:0")], mesh)
  counts, params, _ = descend(100, placed)
  cut = [not leaf.is_fully_replicated for leaf in jax.tree.leaves(params)]
  np.savez(file, counts=counts, cut=all(cut), **trees.flatten(params))


def test_one_and_eight_devices_find_the_same_zeros(tmp_path):
  codes, printed = children.finish(
    children.start(
      descend_on_all_devices,
      tmp_path / "eight.npz",
      log=tmp_path / "log",
      devices=8,
    )
  )
  assert codes == [0], printed
  counts, params, _ = descend(100)
  eight = np.load(tmp_path / "eight.npz")
  assert eight["cut"]
  np.testing.assert_array_equal(eight["counts"], counts)
  for name, value in trees.flatten(params).items():
    np.testing.assert_allclose(eight[name], value, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(eight[name] == 0, value == 0)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_bfloat16_keeps_float32_moments_and_exact_zeros(kind):
  half, grads = jax.tree.map(jnp.bfloat16, (PARAMS, GRADS))
  tx = lasso()
  if kind == "sgd":
    tx = proximal.proximal_group_lasso_sgd(0.1, 0.3, BY_BLOCK, momentum=0.9)
  seen = run(tx, half, grads)
  dtypes = {name: a.dtype for name, a in trees.flatten(seen[-1]).items()}
  for name, dtype in dtypes.items():
    if name.startswith("0/"):
      assert dtype == "bfloat16", name
    elif "block" in name or "head" in name:
      assert dtype == "float32", name
  widened = jax.tree.map(lambda a: a.astype("float32"), (half, grads))
  for (ours, state), (theirs, expected) in zip(
    seen, run(tx, *widened), strict=True
  ):
    assert state.zero_groups == expected.zero_groups
    assert_same(ours, theirs, rtol=0.03, atol=0.03)
  assert all_zero(ours["block_2"])


def test_serves_one_group_of_a_partition():
  tx = optax.partition(
    {"lasso": lasso(), "head": optax.sgd(0.5), "frozen": optax.set_to_zero()},
    {
      "block_0": "lasso",
      "block_1": "frozen",
      "block_2": "lasso",
      "head": "head",
    },
  )
  found = run(tx)
  alone = {name: PARAMS[name] for name in ("block_0", "block_2")}
  grads = [{name: grad[name] for name in alone} for grad in GRADS]
  for (ours, state), (theirs, inner) in zip(
    found, run(lasso(), alone, grads), strict=True
  ):
    assert_same({name: ours[name] for name in alone}, theirs, rtol=0)
    assert_same(ours["block_1"], PARAMS["block_1"], rtol=0)
    assert optax.tree.get(state, "zero_groups") == inner.zero_groups
  # The extra argument reaches it through the partition.
  (_, state), *_ = run(tx, alpha=jnp.float32(1e3))
  assert optax.tree.get(state, "zero_groups") == 2


def test_accumulated_gradients_make_one_step():
  multi = optax.MultiSteps(lasso(), every_k_schedule=2)
  tx = optax.GradientTransformationExtraArgs(multi.init, multi.update)
  found = run(tx)
  pairs = [
    jax.tree.map(lambda a, b: (a + b) / 2, *pair)
    for pair in (GRADS[:2], GRADS[2:])
  ]
  expected = run(lasso(), grads=pairs)
  assert_same(found[0][0], PARAMS, rtol=0)
  for ours, theirs in zip(found[1::2], expected, strict=True):
    assert_same(ours[0], theirs[0], rtol=1e-4, atol=1e-6)
    inner = ours[1].inner_opt_state
    assert inner.count == theirs[1].count
    assert inner.zero_groups == theirs[1].zero_groups == 1
  assert all_zero(ours[0]["block_2"])


def test_stacked_layers_are_groups_of_their_own():
  stack = {
    "blocks": jax.tree.map(
      lambda *leaves: jnp.stack(leaves),
      *(PARAMS[f"block_{i}"] for i in range(3)),
    ),
    "head": PARAMS["head"],
  }
  grads = [
    {
      "blocks": jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        *(grad[f"block_{i}"] for i in range(3)),
      ),
      "head": grad["head"],
    }
    for grad in GRADS
  ]
  groups = group_lasso.by_pattern(r"(blocks)/.*")
  for make, alpha, options in (
    (proximal.proximal_group_lasso, 0.1, {"weights": "sqrt_size"}),
    (proximal.proximal_group_lasso_sgd, 1.0, {"momentum": 0.5}),
  ):
    tx = make(0.1, alpha, groups, stacked=groups, **options)
    apart = make(0.1, alpha, BY_BLOCK, **options)
    for (ours, state), (theirs, expected) in zip(
      run(tx, stack, grads), run(apart), strict=True
    ):
      assert state.zero_groups == expected.zero_groups
      for i in range(3):
        layer = jax.tree.map(lambda a, i=i: a[i], ours["blocks"])
        assert_same(layer, theirs[f"block_{i}"], rtol=1e-5, atol=1e-6)
    assert state.zero_groups == 1
