"""L2, EWC and MAS against the reference (golden/gslora)."""

import dataclasses
import json
import types

import face_toy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import unlearn_toy as toy

from libml import trees
from libml.devices import sharding
from libml.devices.compiled import Compiled
from libml.pipeline import stage_data
from libml.train import steps

OUT, AFTER = 2e-5, 2e-6
METHODS = ("l2", "ewc", "mas")
ANCHORS = ("anchor0", "anchor1")


@pytest.fixture(scope="module")
def file(golden):
  return golden("gslora", "importance")


@pytest.fixture(scope="module", params=face_toy.TYPES)
def dtype(request):
  """Returns a type in which tests run."""
  with face_toy.precision(request.param):
    yield request.param


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Stored(stage_data.StageData):
  """Sweeps over given batches."""

  batches: list

  def sweep(self, subset, *, augment=False):
    del subset, augment
    return iter(self.batches)


def batches(file, dtype, anchor, fill="first"):
  """Returns an anchor's batches of 6, 6 and 4, the last filled up to 6.

  Args:
    file: The golden file.
    dtype: Of the images.
    anchor: Which.
    fill: With repetitions of the "first" image, as a sweep does, with "noise",
      or with nothing ("none").
  """
  found = []
  for number in range(3):
    image = file[f"in/{anchor}/image{number}"].transpose(0, 2, 3, 1)
    label = file[f"in/{anchor}/label{number}"]
    mask = np.ones(len(label), bool)
    short = 0 if fill == "none" else 6 - len(label)
    if short:
      rest = np.repeat(found[0]["image"][:1], short, axis=0)
      if fill == "noise":
        rest = np.random.default_rng(0).normal(0, 9, rest.shape)
      image = np.concatenate([image, rest])
      label = np.concatenate([label, np.repeat(found[0]["label"][:1], short)])
      mask = np.concatenate([mask, np.zeros(short, bool)])
    image, label = image.astype(dtype), label.astype(np.int32)
    found.append({"image": image, "label": label, "mask": mask})
  return found


def begin(state, method, index, given, compiled):
  """Returns the state after a request's hook, on two devices."""
  role = method.weigh_on if index and hasattr(method, "weigh_on") else "retain"
  data = Stored(
    train={role: range(16)},
    stage=index,
    preprocess=None,
    batch_size=6,
    seed=0,
    mesh=sharding.make_mesh(),
    compiled=compiled,
    batches=given,
  )
  classes = {"known": range(10), "forget": (), "retain": range(10)}
  stage = types.SimpleNamespace(index=index, classes=classes)
  return method.before_stage(state, stage, data)


@pytest.fixture(scope="module", params=METHODS)
def run(request, file, dtype):
  """Returns a method at the present weights with both anchors in memory."""
  name = request.param
  method, optimizer = toy.build(name, dtype)
  weights = {
    part: toy.tree(
      toy.leaves(file, f"params/{part}/", method.model), method.model
    )
    for part in (*ANCHORS, "current")
  }
  current, compiled = weights["current"], Compiled()
  first = toy.start(method, optimizer, current, current, 100)
  state, alone = first, {}
  for index, anchor in enumerate(ANCHORS):
    given = batches(file, dtype, anchor)
    only = first.replace(params=weights[anchor])
    alone[anchor] = begin(only, method, 0, given, compiled).memory
    state = state.replace(params=weights[anchor])
    state = begin(state, method, index, given, compiled)
  # Off the mesh, or the other arrays of a step would have to lie there, too.
  memory = jax.tree.map(np.array, state.memory)
  state = state.replace(params=current, memory=memory)
  return types.SimpleNamespace(
    name=name,
    method=method,
    optimizer=optimizer,
    compiled=compiled,
    first=first.replace(params=weights["anchor0"]),
    alone=alone,
    state=state,
  )


@pytest.mark.parametrize("anchor", ANCHORS)
def test_importances(file, dtype, run, anchor):
  found = run.alone[anchor]["weights"]
  if run.name == "l2":  # the reference has none to store
    assert set(map(float, found.values())) == {1.0}
    return
  theirs = toy.leaves(file, f"out/{run.name}/{anchor}/", run.method.model)
  assert found.keys() == theirs.keys()
  toy.check_leaves(found, theirs, dtype=dtype, float32=OUT)


def test_filling_up_a_batch_changes_nothing(file, dtype, run):
  def found(fill):
    given = batches(file, dtype, "anchor0", fill)
    memory = begin(run.first, run.method, 0, given, run.compiled).memory
    return {k: np.array(v) for k, v in memory["weights"].items()}

  wanted = found("first")
  for name, leaf in found("noise").items():
    assert np.array_equal(leaf, wanted[name]), name
  toy.check_leaves(found("none"), wanted, dtype=dtype, float32=OUT)


def test_two_anchors_are_one_quadratic(file, dtype, run):
  # Weights, anchor and constant: what one anchor takes, too.
  kept = ("weights", "anchor", "constant")
  one, two = (
    {name: jax.tree.map(np.shape, memory[name]) for name in kept}
    for memory in (run.alone["anchor0"], run.state.memory)
  )
  assert one == two

  def penalty(params):
    value = run.method.penalty(params, run.state.memory)
    return run.method.strength * value

  strength = json.loads(str(file["meta"]))["lambdas"][run.name]
  assert run.method.strength == strength
  value, grads = jax.value_and_grad(penalty)(run.state.params)
  wanted = file[f"out/penalty/{run.name}"]
  face_toy.close(value, wanted, dtype=dtype, float32=OUT)
  theirs = toy.leaves(file, f"grad/penalty/{run.name}/", run.method.model)
  toy.check_leaves(trees.flatten(grads), theirs, dtype=dtype, float32=OUT)
  assert not np.any(grads["head"]["kernel"])


def test_one_step_of_ewc(file, dtype, run):
  if run.name != "ewc":
    return  # the reference took none
  image = file["in/step/image"].transpose(0, 2, 3, 1)
  # No class is to be forgotten, so labels stay as they are given.
  batch = {
    "image": jnp.asarray(image, dtype),
    "label": jnp.asarray(file["in/step/label"], jnp.int32),
  }
  step = steps.make_train_step(
    run.method.loss, run.method.extra_args, run.optimizer
  )
  state, metrics = jax.jit(step)(run.state, {"train": batch})
  ours = {
    "CE": metrics["cross_entropy"],
    "regularization": run.method.strength * metrics["penalty"],
    "total": metrics["loss"],
  }
  for name, value in ours.items():
    wanted = file[f"out/step/losses_{name}"]
    face_toy.close(value, wanted, dtype=dtype, float32=OUT, name=name)
  theirs = toy.leaves(file, "after1/", run.method.model)
  found, before = trees.flatten(state.params), trees.flatten(run.state.params)
  assert found.keys() - theirs.keys() == {"head/kernel"}
  assert np.array_equal(found["head/kernel"], before["head/kernel"])
  toy.check_leaves(found, theirs, dtype=dtype, float32=AFTER, absolute=True)
  # The step itself is far above what is allowed.
  assert max(abs(found[n] - before[n]).max() for n in theirs) > 9e-5
