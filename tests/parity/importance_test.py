"""L2, EWC and MAS against the reference (golden/gslora)."""

import dataclasses
import types

import face_toy
import jax
import numpy as np
import pytest
import unlearn_toy as toy

from libml import trees
from libml.devices import sharding
from libml.devices.compiled import Compiled
from libml.pipeline import stage_data
from libml.train import steps

FIGURES = {"gslora/importance": {}}
OUT, AFTER = 2e-5, 2e-6
METHODS = ("l2", "ewc", "mas")
ANCHORS = sorted(
  {
    name.split("/")[1]
    for name in face_toy.stored("importance")
    if name.startswith("params/anchor")
  }
)


@pytest.fixture(scope="module")
def file(golden):
  return golden("gslora", "importance")


@pytest.fixture(scope="module", params=["float64"])
def dtype(request):
  """Returns a type in which tests run."""
  with face_toy.precision(request.param):
    yield request.param


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Stored(stage_data.StageData):
  """Sweeps over given batches."""

  batches: list

  def sweep(self, subset, *, augment=False, what=""):
    del subset, augment, what
    return iter(self.batches)


def batches(file, dtype, anchor, fill="first"):
  """Returns an anchor's batches, as many images in all on every device.

  Args:
    file: The golden file.
    dtype: Of the images.
    anchor: Which.
    fill: With repetitions of the "first" image up to the largest batch, as a
      sweep does, with "noise", or only as far as the devices need ("none").
  """
  found, sizes = [], face_toy.meta(file)["batch_sizes"]
  for number, size in enumerate(sizes):
    image = np.moveaxis(file[f"in/{anchor}/image{number}"], 1, -1)
    label = file[f"in/{anchor}/label{number}"]
    assert len(label) == size
    wanted = size if fill == "none" else max(sizes)
    short = wanted + wanted % jax.device_count() - size
    rest = np.repeat(image[:1], short, axis=0)
    if fill == "noise":
      rest = np.random.default_rng(0).normal(0, 9, rest.shape)
    image = np.concatenate([image, rest]).astype(dtype)
    label = np.concatenate([label, np.repeat(label[:1], short)])
    mask = np.arange(len(label)) < size
    found.append(
      {"image": image, "label": label.astype(np.int32), "mask": mask}
    )
  return found


def begin(state, method, index, given, compiled):
  """Returns the state after a request's hook, on two devices."""
  role = method.weigh_on if index and hasattr(method, "weigh_on") else "retain"
  size = len(given[0]["label"])
  data = Stored(
    train={role: range(size * len(given))},
    stage=index,
    preprocess=None,
    batch_size=size,
    seed=0,
    mesh=sharding.make_mesh(),
    compiled=compiled,
    batches=given,
  )
  everything = range(method.num_classes)
  classes = {"known": everything, "forget": (), "retain": everything}
  stage = types.SimpleNamespace(index=index, classes=classes)
  return method.before_stage(state, stage, data)


@pytest.fixture(scope="module", params=METHODS)
def run(request, file, dtype):
  """Returns a method at the present weights with both anchors in memory."""
  name = request.param
  settings = face_toy.meta(file)
  step = {key: settings["step"][key] for key in ("lr", "weight_decay")}
  strength = settings["lambdas"][name]
  method, optimizer = toy.build(name, file, dtype, step=step, strength=strength)
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
    first=first.replace(params=weights[ANCHORS[0]]),
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
    given = batches(file, dtype, ANCHORS[0], fill)
    memory = begin(run.first, run.method, 0, given, run.compiled).memory
    return {k: np.array(v) for k, v in memory["weights"].items()}

  wanted = found("first")
  for name, leaf in found("noise").items():
    assert np.array_equal(leaf, wanted[name]), name
  toy.check_leaves(found("none"), wanted, dtype=dtype, float32=OUT)


def test_all_anchors_are_one_quadratic(file, dtype, run):
  # Weights, anchor and constant: what one anchor takes, too.
  kept = ("weights", "anchor", "constant")
  one, two = (
    {name: jax.tree.map(np.shape, memory[name]) for name in kept}
    for memory in (run.alone[ANCHORS[0]], run.state.memory)
  )
  assert one == two

  def penalty(params):
    value = run.method.penalty(params, run.state.memory)
    return run.method.strength * value

  value, grads = jax.value_and_grad(penalty)(run.state.params)
  wanted = file[f"out/penalty/{run.name}"]
  face_toy.close(value, wanted, dtype=dtype, float32=OUT)
  theirs = toy.leaves(file, f"grad/penalty/{run.name}/", run.method.model)
  toy.check_leaves(trees.flatten(grads), theirs, dtype=dtype, float32=OUT)
  assert not np.any(grads["head"]["kernel"])


def test_one_step(file, dtype, run):
  settings = face_toy.meta(file)["step"]
  if run.name != settings["method"]:
    return  # the reference took none
  # No class is to be forgotten, so labels stay as they are given.
  batch = face_toy.inputs(file, dtype, "in/step/")
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
  moved = max(abs(found[n] - before[n]).max() for n in theirs)
  assert moved > 0.9 * settings["lr"]
