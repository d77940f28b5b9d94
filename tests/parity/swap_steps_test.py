"""Six steps over the change of the phase, as the reference takes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import swap_toy as toy

from libml import trees
from libml.train import steps
from models import lora

# Phase -> steps of an epoch, which move the rate; batches of each step, of
# which the third is the next epoch's where an epoch has two.
PLAN = {
  "learn": (
    2,
    [("learn0", "retain0"), ("learn1", "retain1"), ("learn0", "retain2")],
  ),
  "forget": (
    3,
    [("forget0", "mixed0"), ("forget1", "mixed1"), ("forget0", "mixed2")],
  ),
}


@pytest.fixture(scope="module")
def file(golden):
  return golden("swapping", "ks_steps")


@pytest.fixture(scope="module")
def seen(file):
  """Returns (gradients, adapters, metrics) of each step, and the last state."""
  method, optimizer = toy.build(epochs=int(file["cfg/epochs"]))
  params = toy.tree(file, "params/", method.model)
  state = steps.first_state(method, optimizer, params, jax.random.key(0))
  found = []
  for index, (goal, (per_epoch, batches)) in enumerate(PLAN.items()):
    state = steps.begin_stage(
      state,
      jnp.int32(index + 2),
      jnp.int32(per_epoch),
      jax.random.key(1),
      tx=optimizer.tx,
      restart=method.restart_optimizer,
    )
    loss = functools.partial(method.loss, goal=goal)
    step = jax.jit(steps.make_train_step(loss, method.extra_args, optimizer))
    for main, retain in batches:
      batch = {goal: toy.batch(file, main), "retain": toy.batch(file, retain)}
      state, metrics = step(state, batch)
      adapters = trees.flatten(lora.split(state.params)[1])
      found.append((trees.flatten(state.opt_state[0]), adapters, metrics))
  return found, state, method


@pytest.mark.parametrize("number", range(6))
def test_each_step(file, seen, number):
  grads, adapters, metrics = seen[0][number]
  module, prefix = seen[2].model, f"step{number}"
  assert float(metrics["learning_rate/lora"]) == pytest.approx(
    float(file[f"{prefix}/lr"]), rel=0, abs=1e-8
  )
  stored = toy.leaves(file, f"{prefix}/grad/", module)
  assert len(stored) == 12
  for name, grad in stored.items():
    # B's first gradients of A are zero: rounding noise on both sides.
    atol = 2e-4 * max(abs(grad).max(), 1e-6)
    np.testing.assert_allclose(grads[name], grad, rtol=0, atol=atol)
  stored = toy.leaves(file, f"{prefix}/params/", module)
  assert stored.keys() == adapters.keys()
  for name, leaf in stored.items():
    np.testing.assert_allclose(
      adapters[name], leaf, rtol=0, atol=5e-5, err_msg=name
    )
  assert float(metrics["loss"]) == pytest.approx(
    float(file[f"{prefix}/loss/total"]), rel=0, abs=5e-5
  )
  learns = number < 3
  main = float(metrics["learn" if learns else "forget"])
  logged = {
    "main": main if learns else 0.2 * (105.0 - main),
    "retain": (0.2 if learns else 1.0) * float(metrics["retain"]),
    "structure": 0.005 * float(metrics["structure"]),
  }
  for name, value in logged.items():
    stored = float(file[f"{prefix}/loss/{name}"])
    assert value == pytest.approx(stored, rel=0, abs=5e-5), name


def test_what_six_steps_leave(file, seen):
  _, state, method = seen
  apply = jax.jit(method.apply)
  for name in ("forget0", "retain0", "learn0"):
    logits = apply(state.params, toy.batch(file, name))["logits"]
    np.testing.assert_allclose(
      logits, file[f"out/{name}_logits"], rtol=0, atol=2e-4
    )
  for name, count in (("learn", 2), ("retain", 3), ("forget", 2)):
    hits = []
    for number in range(count):
      batch = toy.batch(file, f"{name}{number}")
      logits = apply(state.params, batch)["logits"]
      hits += list(np.argmax(logits, axis=-1) == batch["label"])
    stored = float(file[f"out/accuracy_{name}"])
    assert 100 * np.mean(hits) == pytest.approx(stored, rel=1e-6)
  merged = trees.flatten(lora.merge(state.params, method.model.lora_scale))
  stored = toy.leaves(file, "out/merged/", method.model)
  assert len(stored) == 2
  for name, kernel in stored.items():
    np.testing.assert_allclose(merged[name], kernel, rtol=0, atol=5e-5)


def test_nothing_but_adapters_moves(file, seen):
  _, state, method = seen
  before, _ = lora.split(toy.tree(file, "params/", method.model))
  after, _ = lora.split(state.params)
  for name, leaf in trees.flatten(before).items():
    assert np.array_equal(trees.flatten(after)[name], leaf), name
