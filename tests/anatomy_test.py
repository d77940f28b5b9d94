"""What models say of themselves, against their parameters and outputs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from libml import trees
from libml.optim import group_lasso
from models import MODELS
from models import anatomy
from models import captures


def build(name, **changes):
  return MODELS[name](variant="smoke", num_classes=3, image_size=8, **changes)


def shapes(model):
  init = jax.eval_shape(model.init, jax.random.key(0), model.example_input())
  return trees.flatten(init["params"])


@pytest.mark.parametrize("name", MODELS)
def test_branches_are_those_of_the_parameters(name):
  model = build(name)
  leaves = shapes(model)
  for leaf, value in leaves.items():
    head = trees.holder(leaf, model.class_heads)
    assert (head is None) != (trees.holder(leaf, model.backbone) is None)
    assert head is None or value.shape[-1] == model.num_classes
    parts = [b for b in (*model.stem, *model.blocks) if trees.holder(leaf, [b])]
    assert len(parts) <= 1
  modules = (*model.attention_inputs.values(), *model.attention_readers)
  for branch in (*model.stem, *model.blocks, *model.backbone, *modules):
    assert any(trees.holder(leaf, [branch]) for leaf in leaves), branch


@pytest.mark.parametrize("name", MODELS)
def test_readers_read_the_attention_s_input(name):
  model = build(name)
  inputs = {"image": jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))}
  params = model.init(jax.random.key(0), inputs)["params"]
  named = (*model.attention_inputs.values(), *model.attention_readers)
  _, seen = captures.capture(model, params, inputs, named)
  flat = trees.flatten(params)
  for reader in model.attention_readers:
    block = trees.holder(reader, model.blocks)
    x = seen[model.attention_inputs[block]]
    y = np.einsum("btd,dhk->bthk", x, flat[f"{reader}/kernel"])
    y += np.asarray(flat.get(f"{reader}/bias", 0.0))
    rows = seen[reader].shape[1]  # the last block asks for the class token
    np.testing.assert_allclose(y[:, :rows], seen[reader], atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_adapters_are_where_the_model_proposes(name, kind):
  layers = build(name).adaptable[kind]
  model = build(name, lora=dict(layers=layers, rank=1))
  found = {n for n in shapes(model) if n.endswith("/lora_a")}
  assert len(found) == 2 * len(model.blocks)
  readers = [trees.holder(n, model.attention_readers) for n in found]
  assert all(readers) == (kind == "attention")


class Staged(anatomy.Anatomy):
  """Blocks inside stages, and others beside them."""

  blocks = ("swin/stage_0/block_0", "swin/stage_1/block_0", "decoder/layer_0")


def test_blocks_may_be_nested_and_numbered_in_any_way():
  model = Staged()
  layers = [f"{block}/ffn/lora_{x}" for block in model.blocks for x in "ab"]
  tree = dict.fromkeys((*layers, "swin/stage_0/merge/lora_a"), jnp.ones(2))
  found = group_lasso.members(
    tree, group_lasso.of_adapters("block", model.blocks)
  )
  assert found.keys() == set(model.blocks)
  assert sorted(sum(found.values(), [])) == sorted(layers)
  assert model.short(layers[0]) == layers[0]
  assert trees.root(model.blocks[:2]) == "swin"
  assert re.fullmatch(trees.pattern(model.blocks), layers[0])
  assert not re.fullmatch(trees.pattern(["swin/stage"]), layers[0])


def test_a_branch_holds_no_leaf_of_a_branch_with_a_longer_name():
  assert trees.holder("block_10/bias", ["block_1"]) is None
  assert trees.holder("block_10/bias", ["block_1", "block_10"]) == "block_10"
