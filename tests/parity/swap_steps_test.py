"""Steps over the change of the phase, as the reference takes them."""

import functools
import itertools
import re

import figures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import swap_toy as toy

from libml import trees
from libml.train import steps
from models import lora

FIGURES = {
  "swapping/ks_steps": {
    "cfg/optimizer_groups": "how the reference lists its own parameters",
  }
}
STEPS = figures.cases("swapping/ks_steps", r"step(\d+)/lr")


def numbered(file, name):
  """Returns the names of a file's batches: name0, name1, ..."""
  found = [key for key in file if re.fullmatch(rf"in/{name}\d+/image", key)]
  return [f"{name}{number}" for number in range(len(found))]


def plan(file):
  """Returns {goal: (steps of an epoch, [(main batch, batch beside)])}.

  The golden README: the learn phase's epochs go by its own batches, the forget
  phase's by those beside it; a stream that is through starts again.
  """
  phases = {}
  for goal, beside, anchor in (
    ("learn", "retain", "learn"),
    ("forget", "mixed", "mixed"),
  ):
    main = itertools.cycle(numbered(file, goal))
    pairs = list(zip(main, numbered(file, beside), strict=False))
    phases[goal] = (len(numbered(file, anchor)), pairs)
  return phases


@pytest.fixture(scope="module")
def file(golden):
  return golden("swapping", "ks_steps")


@pytest.fixture(scope="module")
def seen(file):
  """Returns (goal, gradients, adapters, metrics) of each step, and the end."""
  method, optimizer = toy.build(
    file,
    epochs=int(file["cfg/epochs"]),
    lr=float(file["cfg/lr"]),
    min_lr=float(file["cfg/min_lr"]),
    weight_decay=float(file["cfg/weight_decay"]),
  )
  params = toy.tree(file, "params/", method.model)
  state = steps.first_state(method, optimizer, params, jax.random.key(0))
  found = []
  for index, (goal, (per_epoch, batches)) in enumerate(plan(file).items()):
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
      grads = trees.flatten(state.opt_state[0])
      found.append((goal, grads, adapters, metrics))
  assert len(found) == len(STEPS)
  return found, state, method


@pytest.mark.parametrize("number", STEPS)
def test_each_step(file, seen, number):
  goal, grads, adapters, metrics = seen[0][int(number)]
  module, prefix = seen[2].model, f"step{number}"
  assert float(metrics["learning_rate/lora"]) == pytest.approx(
    float(file[f"{prefix}/lr"]), rel=0, abs=1e-8
  )
  stored = toy.leaves(file, f"{prefix}/grad/", module)
  assert stored.keys() == adapters.keys()
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
  main, beta = float(metrics[goal]), float(file["cfg/beta"])
  learns = goal == "learn"
  logged = {
    "main": main if learns else beta * (float(file["cfg/bound"]) - main),
    "retain": (beta if learns else 1.0) * float(metrics["retain"]),
    "structure": float(file["cfg/alpha"]) * float(metrics["structure"]),
  }
  for name, value in logged.items():
    stored = float(file[f"{prefix}/loss/{name}"])
    assert value == pytest.approx(stored, rel=0, abs=5e-5), name


def test_what_the_steps_leave(file, seen):
  _, state, method = seen
  apply = jax.jit(method.apply)
  for key in [key for key in file if key.endswith("_logits")]:
    name = key.removeprefix("out/").removesuffix("_logits")
    logits = apply(state.params, toy.batch(file, name))["logits"]
    np.testing.assert_allclose(logits, file[key], rtol=0, atol=2e-4)
  for name, stored in file.part("out/accuracy_").items():
    hits = []
    for part in numbered(file, name):
      batch = toy.batch(file, part)
      logits = apply(state.params, batch)["logits"]
      hits += list(np.argmax(logits, axis=-1) == batch["label"])
    assert 100 * np.mean(hits) == pytest.approx(float(stored), rel=1e-6)
  merged = trees.flatten(lora.merge(state.params, method.model.lora_scale))
  stored = toy.leaves(file, "out/merged/", method.model)
  assert len(stored) == 2  # both layers of the first block's MLP
  for name, kernel in stored.items():
    np.testing.assert_allclose(merged[name], kernel, rtol=0, atol=5e-5)


def test_nothing_but_adapters_moves(file, seen):
  _, state, method = seen
  before, _ = lora.split(toy.tree(file, "params/", method.model))
  after, _ = lora.split(state.params)
  for name, leaf in trees.flatten(before).items():
    assert np.array_equal(trees.flatten(after)[name], leaf), name
