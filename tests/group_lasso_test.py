"""Groups by name, their norms, and which of them are zero."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from libml import trees
from libml.optim import group_lasso
from models import lora
from models import vit

RNG = np.random.default_rng(0)


def leaf(*shape):
  return jnp.float32(RNG.normal(size=shape))


TREE = {
  "a": {"x": leaf(3, 2), "y": leaf(4)},
  "b": {"x": jnp.zeros((2, 2)), "y": jnp.zeros(3)},
  "c": {"x": leaf(2).at[0].set(0), "z": jnp.zeros(5)},
  "free": leaf(3),
}
BY_LETTER = group_lasso.by_pattern(r"([abc])/.*")


def test_captures_name_the_group():
  groups = group_lasso.by_pattern(r"(\w+)/(block_\d+)/(?:.*/)?(a|b)?w")
  assert groups("net/block_3/dense/w") == "net/block_3"
  assert groups("net/block_3/aw") == "net/block_3/a"
  assert groups("net/block_3/dense/w/more") is None
  assert groups("head/w") is None


@pytest.mark.parametrize(
  ("pattern", "message"),
  [
    ("(a", r"'\(a' is no regular expression: .*position"),
    ("a/.*", "'a/.*' captures nothing.*in parentheses"),
    ("(?:a)/.*", "captures nothing"),
  ],
)
def test_pattern_that_names_no_group_is_refused(pattern, message):
  with pytest.raises(ValueError, match=message):
    group_lasso.by_pattern(pattern)


def test_members_are_whole_names_in_order():
  assert group_lasso.members(TREE, BY_LETTER) == {
    "a": ["a/x", "a/y"],
    "b": ["b/x", "b/y"],
    "c": ["c/x", "c/z"],
  }
  masked = {**TREE, "a": {"x": optax.MaskedNode(), "y": TREE["a"]["y"]}}
  assert group_lasso.members(masked, BY_LETTER)["a"] == ["a/y"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_norm_is_over_all_leaves_of_a_group(dtype):
  tree = jax.tree.map(lambda x: x.astype(dtype), TREE)
  norms = group_lasso.norms(tree, BY_LETTER)
  for group in "abc":
    exact = np.concatenate(
      [np.float64(x).ravel() for x in tree[group].values()]
    )
    assert norms[group].dtype == "float32" and norms[group].shape == ()
    np.testing.assert_allclose(norms[group], np.linalg.norm(exact), rtol=1e-6)
  np.testing.assert_allclose(
    group_lasso.penalty(tree, BY_LETTER), sum(norms.values()), rtol=1e-6
  )
  assert group_lasso.penalty(TREE, lambda name: None) == 0


def test_gradient_is_the_unit_vector_and_zero_at_zero():
  grads = jax.jit(jax.grad(group_lasso.penalty), static_argnums=1)(
    TREE, BY_LETTER
  )
  norms = group_lasso.norms(TREE, BY_LETTER)
  for name, grad in trees.flatten(grads).items():
    value = trees.flatten(TREE)[name]
    group = BY_LETTER(name)
    expected = value / norms[group] if group in ("a", "c") else 0 * value
    np.testing.assert_allclose(grad, expected, rtol=1e-6, err_msg=name)


def test_zero_is_exact_and_of_the_whole_group():
  found = group_lasso.zeros(TREE, BY_LETTER)
  assert {group: bool(zero) for group, zero in found.items()} == {
    "a": False,
    "b": True,
    "c": False,
  }
  tiny = {"b": {"x": jnp.float32([-0.0, 1e-30])}}
  assert not group_lasso.zeros(tiny, BY_LETTER)["b"]
  assert group_lasso.norms(tiny, BY_LETTER)["b"] == 0, "its square underflows"
  assert group_lasso.zeros({"b": {"x": jnp.float32([-0.0])}}, BY_LETTER)["b"]


def module(layers):
  """Returns a small ViT with adapters."""
  return vit.ViT(
    num_classes=3,
    image_size=8,
    patch_size=4,
    width=8,
    depth=2,
    mlp_dim=16,
    num_heads=2,
    dense=lora.Lora(layers, rank=2),
  )


def adapted(layers):
  """Returns the shapes of its parameters."""
  image = jnp.zeros((1, 8, 8, 3))
  init = functools.partial(module(layers).init, train=False)
  return jax.eval_shape(init, jax.random.key(0), {"image": image})["params"]


FFN = r".*/MlpBlock_0/Dense_[01]"
ATTENTION = r".*/(query|key|value)"
# Grouping -> groups of a block by the adapters' placement, and leaves in each.
SIZES = {
  ("block", FFN): (1, 4),
  ("block", ATTENTION): (1, 6),
  ("block_b", FFN): (1, 2),
  ("lora", FFN): (2, 2),
  ("lora", ATTENTION): (3, 2),
  ("matrix", FFN): (4, 1),
}


@pytest.mark.parametrize(
  ("grouping", "layers"),
  SIZES,
  ids=lambda value: "ffn" if value == FFN else re.sub(r"\W", "", value),
)
def test_groupings_of_a_vit_s_adapters(grouping, layers):
  assert {name for name, _ in SIZES} == set(group_lasso.GROUPINGS)
  params = adapted(layers)
  groups = group_lasso.of_adapters(grouping, module(layers).blocks)
  found = group_lasso.members(params, groups)
  count, leaves = SIZES[grouping, layers]
  assert len(found) == 2 * count
  for group, names in found.items():
    assert group.startswith("Transformer/encoderblock_")
    assert len(names) == leaves
    block = group.removesuffix("/lora_b")
    assert all(name.startswith(block) for name in names)
    assert all(name.split("/")[-1] in ("lora_a", "lora_b") for name in names)
