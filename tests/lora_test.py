"""Adapters: what a layer computes with them, and their arithmetic on trees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lora_toy import tiny
from walks import watch

import main
from libml import trees
from libml.train import weights
from models import lora
from models import pretrained
from models import vit

TOY = dict(
  num_classes=5, image_size=8, patch_size=4, width=8, depth=2, mlp_dim=16,
  num_heads=2,
)  # fmt: skip
ALL = r".*/(query|key|value|out|Dense_[01])"
IMAGE = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
ATTENTION = "MultiHeadDotProductAttention_0"
# Layer -> its place in a block, D_in, D_out.
LAYERS = {
  "query": (f"{ATTENTION}/query", 8, 8),
  "key": (f"{ATTENTION}/key", 8, 8),
  "value": (f"{ATTENTION}/value", 8, 8),
  "out": (f"{ATTENTION}/out", 8, 8),
  "Dense_0": ("MlpBlock_0/Dense_0", 8, 16),
  "Dense_1": ("MlpBlock_0/Dense_1", 16, 8),
}
# (rank, alpha, scale)
SIZES = [(1, None, 1.0), (8, 2.0, 0.25)]


def adapted(layers=ALL, rank=2, alpha=None, **fields):
  """Returns a ViT with adapters, and its parameters, B not 0."""
  model = vit.build(
    **TOY, lora={"layers": layers, "rank": rank, "alpha": alpha}, **fields
  )
  params = model.init(jax.random.key(0), {"image": IMAGE})["params"]
  return model, params


def plain():
  """Returns a ViT without adapters, and its parameters."""
  model = vit.build(**TOY)
  return model, model.init(jax.random.key(0), {"image": IMAGE})["params"]


def trained(params, seed=0):
  """Returns the parameters with adapters as a training may leave them."""
  rng = np.random.default_rng(seed)

  def draw(name, leaf):
    if not name.endswith(("lora_a", "lora_b")):
      return leaf
    return jnp.float32(rng.normal(size=leaf.shape, scale=0.3))

  return trees.map_named(draw, params)


def features(model, params):
  return jax.jit(model.apply)({"params": params}, {"image": IMAGE})["features"]


def assert_equal(ours, theirs):
  """Compares trees, name by name and bit by bit."""
  ours, theirs = trees.flatten(ours), trees.flatten(theirs)
  assert ours.keys() == theirs.keys()
  for name, leaf in ours.items():
    np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)


def assert_close(ours, theirs, error=1e-6):
  """Compares trees by each leaf's largest element."""
  ours, theirs = trees.flatten(ours), trees.flatten(theirs)
  assert ours.keys() == theirs.keys()
  for name, leaf in ours.items():
    largest = abs(np.asarray(theirs[name])).max()
    assert abs(leaf - theirs[name]).max() <= error * largest, name


@pytest.mark.parametrize(("rank", "alpha", "scale"), SIZES)
@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_takes_an_adapter(layer, rank, alpha, scale):
  place, width, out = LAYERS[layer]
  model, params = adapted(rf".*/{layer}", rank, alpha)
  assert model.lora_scale == scale
  base, adapters = lora.split(params)
  assert_equal(base, plain()[1])
  shapes = {"lora_a": (width, rank), "lora_b": (rank, out)}
  assert {n: x.shape for n, x in trees.flatten(adapters).items()} == {
    f"Transformer/encoderblock_{block}/{place}/{leaf}": shape
    for block in (0, 1)
    for leaf, shape in shapes.items()
  }
  leaves = trees.flatten(trained(params))
  kernels = {}
  for block in (0, 1):
    name = f"Transformer/encoderblock_{block}/{place}"
    a, b = (np.float64(leaves[f"{name}/{leaf}"]) for leaf in shapes)
    kernel = leaves[f"{name}/kernel"]
    change = (scale * a @ b).reshape(kernel.shape)
    kernels[f"{name}/kernel"] = jnp.float32(kernel + change)
  merged = features(plain()[0], trees.update(base, kernels))
  ours = features(model, trained(params))
  np.testing.assert_allclose(ours, merged, atol=1e-5)
  assert abs(ours - features(*plain())).max() > 1e-3


def test_pattern_may_choose_blocks():
  _, params = adapted(r".*encoderblock_1/.*/(key|Dense_1)")
  names = {n.rpartition("/")[0] for n in trees.flatten(lora.split(params)[1])}
  block = "Transformer/encoderblock_1"
  assert names == {f"{block}/{LAYERS[n][0]}" for n in ("key", "Dense_1")}


def test_fresh_adapter_changes_nothing():
  model, params = adapted()
  ours, theirs = features(model, params), features(*plain())
  np.testing.assert_array_equal(ours, theirs)
  _, adapters = lora.split(params)
  for name, leaf in trees.flatten(adapters).items():
    assert (leaf == 0).all() == name.endswith("lora_b"), name


def test_alone_a_layer_maps_several_axes():
  size = lora.Lora(".*", 3, alpha=1.5)
  layer = lora.LoraDense((2, 4), axis=(-2, -1), lora=size)
  x = jax.random.normal(jax.random.key(0), (5, 3, 2))
  params = trained(layer.init(jax.random.key(1), x)["params"])
  assert params["lora_a"].shape == (6, 3) and params["lora_b"].shape == (3, 8)
  p = jax.tree.map(np.float64, params)
  kernel = p["kernel"].reshape(6, 8) + 0.5 * p["lora_a"] @ p["lora_b"]
  y = (np.float64(x).reshape(5, 6) @ kernel).reshape(5, 2, 4) + p["bias"]
  np.testing.assert_allclose(layer.apply({"params": params}, x), y, atol=1e-5)


def test_computes_in_bfloat16_what_float32_says():
  model, params = adapted(dtype="bfloat16")
  params = trained(params)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
    jnp.dtype("float32")
  }
  half, whole = features(model, params), features(adapted()[0], params)
  assert 0 < abs(half - whole).max() < 0.1
  assert abs(whole - features(*plain())).max() > 1
  layer = lora.LoraDense(4, lora=lora.Lora(".*", 2), dtype=jnp.bfloat16)
  y, _ = layer.init_with_output(jax.random.key(0), jnp.ones((2, 4)))
  assert y.dtype == jnp.bfloat16


def test_pretrained_tree_loads_as_it_is(tmp_path):
  model = main.build_method(tiny(), 6, 3).model
  without = vit.build("smoke", depth=2, image_size=8, num_classes=6)
  shapes = without.init(jax.random.key(3), {"image": jnp.zeros((1, 8, 8, 3))})
  stored = trained(shapes["params"])
  path = tmp_path / "weights.npz"
  pretrained.save(path, stored)
  config = tiny(init_checkpoint=str(path), random_init=False)
  params, facts = weights.first(config, model)
  base, adapters = lora.split(params)
  assert facts["name"] == "weights.npz"
  assert_equal(base, stored)
  found = trees.flatten(adapters)
  assert len(found) == 2 * 2 * 2
  for name, leaf in found.items():
    assert (leaf == 0).all() == name.endswith("lora_b")
    assert abs(leaf).max() <= 16**-0.5


def test_split_parts_adapters_and_join_puts_them_back():
  _, params = adapted()
  base, adapters = lora.split(params)
  assert_equal(base, plain()[1])
  assert len(jax.tree.leaves(adapters)) == 2 * 2 * len(LAYERS)
  assert_equal(lora.join(base, adapters), params)
  assert_equal(
    lora.join(params, lora.split(trained(params))[1]), trained(params)
  )


def test_merge_keeps_the_function_and_can_be_undone():
  model, params = adapted(rank=3, alpha=6.0)
  params = trained(params)
  merged = lora.merge(params, model.lora_scale)
  # x W + x A B and x (W + A B) round apart, by the CPU: 1.2e-6 on one.
  assert_close(features(model, merged), features(model, params), 5e-6)
  base, adapters = lora.split(merged)
  assert_close(features(plain()[0], base), features(model, params), 5e-6)
  for name, leaf in trees.flatten(adapters).items():
    old = trees.flatten(params)[name]
    same = jnp.zeros_like(old) if name.endswith("lora_b") else old
    np.testing.assert_array_equal(leaf, same)
  changes = lora.deltas(params, model.lora_scale)
  undone, _ = lora.split(lora.subtract(merged, changes))
  assert_close(undone, lora.split(params)[0])


def test_edits_are_sums():
  model, params = adapted(rank=3, alpha=6.0)
  first, second = (
    lora.deltas(trained(params, seed), model.lora_scale) for seed in (0, 1)
  )
  assert len(jax.tree.leaves(first)) == 2 * len(LAYERS)
  one = lora.subtract(lora.subtract(params, first), second)
  other = lora.subtract(lora.subtract(params, second), first)
  both = lora.subtract(params, jax.tree.map(jnp.add, first, second))
  assert_close(one, other)
  assert_close(one, both)
  back = lora.subtract(lora.subtract(one, first, times=-1), second, times=-1)
  assert_close(back, params)
  pushed = lora.subtract(params, first, times=2.0)
  assert_close(lora.subtract(pushed, first, times=-2.0), params)


def test_nothing_is_changed_in_place():
  _, params = adapted()
  params = jax.tree.map(np.array, trained(params))
  before = jax.tree.map(np.copy, params)
  changes = jax.tree.map(np.array, lora.deltas(params, 1.0))
  lora.merge(params, 1.0)
  lora.subtract(params, changes)
  lora.restart(lora.split(params)[1], jax.random.key(0))
  lora.join(params, lora.split(trained(params))[1])
  assert_equal(params, before)


SLOPES = {"loralib": (5**0.5, 1.0), "GS-LoRA": (50**0.5, 0.34300)}


@pytest.mark.parametrize(("slope", "bound"), SLOPES.values(), ids=SLOPES)
def test_restart_draws_a_in_the_reference_range(slope, bound):
  shapes = {
    "lora_a": jax.ShapeDtypeStruct((400, 50), jnp.float32),
    "lora_b": jax.ShapeDtypeStruct((50, 30), jnp.float32),
  }
  fresh = lora.restart(shapes, jax.random.key(0), slope=slope)
  a, bound = np.array(fresh["lora_a"]), bound / 400**0.5
  assert 0.999 * bound < abs(a).max() <= bound * (1 + 1e-5)
  np.testing.assert_allclose(a.std(), bound / 3**0.5, rtol=0.02)
  np.testing.assert_allclose(a.mean(), 0, atol=0.03 * bound)
  assert fresh["lora_b"].shape == (50, 30) and not fresh["lora_b"].any()


def test_initial_a_is_drawn_as_a_restarted_one():
  layer = lora.LoraDense(64, lora=lora.Lora(".*", 32))
  params = layer.init(jax.random.key(0), jnp.ones((1, 400)))["params"]
  assert 0.99 / 20 < abs(params["lora_a"]).max() <= 1.00001 / 20


def test_sparse_b_has_one_element_a_row():
  adapters = {"lora_b": jnp.zeros((4000, 30))}
  b = np.array(
    lora.restart(adapters, jax.random.key(0), lora_b="sparse")["lora_b"]
  )
  assert ((b != 0).sum(axis=1) == 1).all()
  assert ((b != 0).sum(axis=0) > 60).all()  # 133 on average
  np.testing.assert_allclose(b[b != 0].std(), 0.01, rtol=0.05)
  np.testing.assert_allclose(b[b != 0].mean(), 0, atol=6e-4)


def test_every_leaf_is_drawn_for_itself():
  _, params = adapted(rank=8)
  _, adapters = lora.split(params)
  draw = functools.partial(lora.restart, adapters, lora_b="sparse")
  fresh = draw(jax.random.key(0))
  assert_equal(draw(jax.random.key(0)), fresh)
  drawn = [np.ravel(leaf) for leaf in jax.tree.leaves(fresh)]
  drawn += [np.ravel(leaf) for leaf in jax.tree.leaves(draw(jax.random.key(1)))]
  firsts = {tuple(leaf) for leaf in drawn}
  assert len(firsts) == len(drawn) == 2 * 4 * len(LAYERS)
  with pytest.raises(ValueError, match="lora_b='ones' must be 'zeros' or"):
    lora.restart(adapters, jax.random.key(0), lora_b="ones")


def test_export_is_a_plain_vit_of_the_same_features(tmp_path):
  config = tiny(export=True, epochs=1)
  config.method = {"name": "finetune", "mask_classes": True}
  config.optimizer.lora.project = None
  seen = watch(config, tmp_path)
  _, adapters = lora.split(seen.state.params)
  assert all(leaf.any() for leaf in jax.tree.leaves(adapters)), "trained"
  fields = dict(depth=2, image_size=8, num_classes=6)
  model, without = (
    main.build_method(config, 6, 3).model,
    vit.build("smoke", **fields),
  )
  shapes = jax.eval_shape(without.init, jax.random.key(0), {"image": IMAGE})
  params = pretrained.load(tmp_path / "export" / "params.npz", shapes["params"])
  ours = features(without, params)
  assert_close(ours, features(model, seen.state.params), 1e-6)
  base, _ = lora.split(seen.state.params)
  assert abs(ours - features(without, base)).max() > 1e-3
