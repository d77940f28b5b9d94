"""GS-LoRA's loss: two streams through one pass, a bound on a batch's mean."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gs_toy import tiny

import main
from libml import trees
from libml.problems import losses
from methods.parts import pairing


def method(**changes):
  """Returns the tiny run's method with one block and other options."""
  dropout = changes.pop("dropout", 0.0)
  config = tiny(model__depth=1, model__dropout=dropout)
  built = main.build_method(config, num_classes=6, num_stages=3)
  return dataclasses.replace(built, **changes)


def alive(ours, seed=0):
  """Returns parameters whose adapters and head all do something."""
  image = {"image": jnp.zeros((1, 8, 8, 3))}
  tree = jax.jit(ours.model.init)(jax.random.key(seed), image)["params"]
  rng = np.random.default_rng(seed)
  return trees.map_named(
    lambda name, leaf: (
      jnp.float32(rng.normal(scale=0.4, size=leaf.shape))
      if name.startswith("head") or "lora" in name
      else leaf
    ),
    tree,
  )


def pair(first=6, second=6):
  """Returns two batches of random images."""
  rng = np.random.default_rng(0)
  return {
    name: {
      "image": jnp.float32(rng.normal(size=(size, 8, 8, 3))),
      "label": jnp.int32(rng.integers(0, 5, size)),
    }
    for name, size in (("retain", first), ("forget", second))
  }


MEMORY = {
  "classes": jnp.ones(6, bool),
  "beta": jnp.float32(0.3),
  "alpha": jnp.float32(0.0),
}


def gradient(ours, tree, batch, memory=MEMORY):
  """Returns loss, parts and gradient without dropout's noise."""
  (value, parts), grads = jax.jit(jax.value_and_grad(ours.loss, has_aux=True))(
    tree, memory, batch, jax.random.key(0)
  )
  return value, parts, trees.flatten(grads)


def mean_losses(ours, tree, batch):
  """Returns the cross entropies of each image, one pass for each part."""
  return {
    name: losses.cross_entropy(outputs(ours, tree, part), part["label"])
    for name, part in batch.items()
  }


def outputs(ours, tree, part, rng=None):
  return jax.jit(ours.apply)(tree, part, rng)["logits"]


@pytest.mark.parametrize("sizes", [(6, 6), (6, 5)])
def test_joined_pass_is_that_of_two_without_dropout(sizes):
  ours, batch = method(bound=50.0), pair(*sizes)
  tree = alive(ours)

  def apart(tree):
    found = mean_losses(ours, tree, batch)
    return found["retain"].mean() + 0.3 * (50.0 - found["forget"].mean())

  value, parts, grads = gradient(ours, tree, batch)
  expected = mean_losses(ours, tree, batch)
  for name, rows in expected.items():
    np.testing.assert_allclose(parts[name], rows.mean(), rtol=1e-5)
  np.testing.assert_allclose(value, apart(tree), rtol=1e-6)
  for name, leaf in trees.flatten(jax.jit(jax.grad(apart))(tree)).items():
    np.testing.assert_allclose(
      grads[name], leaf, rtol=1e-3, atol=1e-5, err_msg=name
    )


@pytest.mark.parametrize("sizes", [(6, 6), (6, 5)])
def test_parts_of_a_joined_pass_are_the_given_ones(sizes):
  batch = pair(*sizes)
  joined = pairing.join(batch["retain"], batch["forget"])
  assert len(joined["label"]) == sum(sizes)
  for name, part in zip(
    ("retain", "forget"), pairing.part(joined, *sizes), strict=True
  ):
    for key, leaf in part.items():
      assert np.array_equal(leaf, batch[name][key])


@pytest.mark.parametrize("sizes", [(6, 6), (6, 5)])
def test_halves_have_dropout_of_their_own(sizes):
  ours, batch = method(dropout=0.5), pair(*sizes)
  twins = [
    {k: x[np.arange(size) % 5] for k, x in batch["retain"].items()}
    for size in sizes
  ]
  tree = alive(ours)
  found = outputs(ours, tree, pairing.join(*twins), jax.random.key(1))
  first, second = pairing.part(found, *sizes)
  off = abs(first[:5] - second[:5]).max(axis=1)
  assert (off > 1e-2).all(), "each image meets two masks"


def test_bound_acts_on_the_mean_of_the_batch():
  ours, batch = method(), pair()
  tree = alive(ours)
  rows = mean_losses(ours, tree, batch)["forget"]
  mean = float(rows.mean())
  # Below the mean: images below the bound push no more, either.
  reached = dataclasses.replace(ours, bound=mean - 1e-3)
  assert (rows < reached.bound).any()
  value, parts, grads = gradient(reached, tree, batch)
  assert value == parts["retain"]
  off = {**MEMORY, "beta": jnp.float32(0.0)}
  _, _, alone = gradient(reached, tree, batch, off)
  for name, leaf in grads.items():
    assert np.array_equal(leaf, alone[name]), name
  # Above it: images beyond the bound are pushed on with the others.
  pushing = dataclasses.replace(ours, bound=mean + 1e-3)
  assert (rows > pushing.bound).any()
  _, _, grads = gradient(pushing, tree, batch)
  up = jax.grad(lambda t: mean_losses(ours, t, batch)["forget"].mean())(tree)
  for name, leaf in trees.flatten(up).items():
    np.testing.assert_allclose(
      grads[name], alone[name] - 0.3 * leaf, rtol=1e-3, atol=1e-5
    )


def test_further_classes_stay_out_of_the_loss():
  ours, batch = method(), pair()
  tree = alive(ours)
  memory = {**MEMORY, "classes": jnp.arange(6) < 5}
  _, parts, grads = gradient(ours, tree, batch, memory)
  for name, part in batch.items():
    known = outputs(ours, tree, part)[:, :5]
    expected = losses.cross_entropy(known, part["label"]).mean()
    np.testing.assert_allclose(parts[name], expected, rtol=1e-5)
  assert not grads["head/kernel"][:, 5].any()
  assert grads["head/kernel"][:, 4].any()
