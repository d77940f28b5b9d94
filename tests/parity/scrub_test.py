"""SCRUB and SCRUB-S against the reference (golden/gslora)."""

import dataclasses
import types

import face_toy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import unlearn_toy as toy

from libml import trees
from libml.devices.compiled import Compiled
from libml.optim import schedules
from libml.problems import losses
from libml.train import steps

FIGURES = {"gslora/scrub": {}}
OUT, GRAD, AFTER = 2e-5, 5e-5, 5e-6
ROLES = {"forget": "forget", "retain": "remain"}
# Name -> share of the file's smoothing.
METHODS = {"scrub": 0.0, "scrub_s": 1.0}


@pytest.fixture(scope="module")
def file(golden):
  return golden("gslora", "scrub")


@pytest.fixture
def dtype(request):
  """Returns a type in which a test runs."""
  with face_toy.precision(request.param):
    yield request.param


both_types = pytest.mark.parametrize("dtype", face_toy.TYPES, indirect=True)


def build(name, file, dtype):
  """Returns a method and its optimizer, as the stored run has them."""
  numbers = face_toy.meta(file)["scrub"]
  table = file["out/lr_table"]
  kinds = file[f"out/{name}/pass_kind"]
  epochs, rounds = table.shape
  return toy.build(
    name,
    file,
    dtype,
    epochs=epochs,
    step={
      "lr": numbers["lr"],
      "min_lr": float(table.min()),
      "l2": numbers["weight_decay"],
      "b1": numbers["betas"][0],
      "b2": numbers["betas"][1],
      "eps": numbers["eps"],
    },
    retain=numbers["gamma"],
    distill=numbers["alpha"],
    temperature=numbers["kd_T"],
    smoothing=METHODS[name] * numbers["smoothing"],
    average_decay=numbers["swa_decay"],
    max_rounds=int(np.sum(kinds == 0)) // len(walked(file)),
    min_rounds=rounds,
  )


def walked(file):
  """Returns the epochs that the reference ran, in a row."""
  return face_toy.meta(file)["super_epochs"]


def params(file, who, method):
  found = toy.leaves(file, f"params/{who}/", method.model)
  return toy.tree(found, method.model)


def averaged(file, method, optimizer):
  """Returns the memory whose average is the stored one."""
  teacher = params(file, "teacher", method)
  memory = toy.start(method, optimizer, teacher, teacher, 1).memory
  average = trees.flatten(params(file, "average", method))
  assert average.keys() - memory["average"].keys() == {"head/kernel"}
  average = {name: average[name] for name in memory["average"]}
  return {**memory, "average": average}


# One kind in float32 is enough.
@pytest.mark.parametrize(
  ("dtype", "kind"),
  [("float64", "max"), ("float64", "min"), ("float32", "min")],
  indirect=["dtype"],
)
def test_one_step_s_loss_and_gradient(file, dtype, kind):
  method, optimizer = build("scrub_s", file, dtype)
  role = {"max": "forget", "min": "retain"}[kind]
  loss = getattr(method, f"{kind}_loss")
  (value, parts), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    params(file, "student", method),
    averaged(file, method, optimizer),
    {role: toy.batch(file, ROLES[role], 0, dtype)},
    jax.random.key(0),
  )
  names = {"loss": "total", f"{role}_distill": "kd"}
  names |= {"retain": "ce"} if kind == "min" else {}
  stored = {ours: file[f"out/{kind}/{name}"] for ours, name in names.items()}
  found = {"loss": value, **parts}
  toy.check_leaves(found, stored, dtype=dtype, float32=OUT)
  stored = toy.leaves(file, f"grad/{kind}/", method.model)
  grads = trees.flatten(grads)
  assert grads.keys() - stored.keys() == {"head/kernel"}
  toy.check_leaves(grads, stored, dtype=dtype, float32=GRAD)


@both_types
def test_smoothing_alone(file, dtype):
  method, optimizer = build("scrub_s", file, dtype)
  memory = averaged(file, method, optimizer)
  smooth = jax.jit(jax.value_and_grad(method.smooth))
  value, grads = smooth(params(file, "student", method), memory)
  stored = {"smoothing": file["out/smoothing"]}
  toy.check_leaves({"smoothing": value}, stored, dtype=dtype, float32=OUT)
  stored = toy.leaves(file, "grad/smoothing/", method.model)
  toy.check_leaves(trees.flatten(grads), stored, dtype=dtype, float32=GRAD)
  # The first step is taken at the average itself.
  value, grads = smooth(params(file, "average", method), memory)
  assert value == 0
  for name, grad in trees.flatten(grads).items():
    np.testing.assert_array_equal(
      grad, file["out/smoothing_gradient_at_zero"], err_msg=name
    )


def test_query_key_and_value_count_as_one_tensor(file):
  method, optimizer = build("scrub_s", file, "float32")
  memory = averaged(file, method, optimizer)
  student = params(file, "student", method)
  flat = trees.flatten(student)
  apart = sum(losses.norm(flat[n] - x) for n, x in memory["average"].items())
  assert method.smoothing * apart > 1.01 * method.smooth(student, memory)


@both_types
def test_rate_drops_in_the_last_epochs(file, dtype):
  table = file["out/lr_table"]
  rate = schedules.build(
    "late_drop",
    lr=face_toy.meta(file)["scrub"]["lr"],
    epochs=len(table),
    min_lr=float(table.min()),
  )
  count = 40  # steps of an epoch
  for epoch, wanted in enumerate(table):
    # After a step the clock shows the part of the epoch that is done.
    clock = epoch + (np.arange(count) + 1) / count
    found = rate(jnp.asarray(clock, dtype))
    rounds = np.arange(count) * len(wanted) // count
    allowed = {"float64": 1e-12, "float32": 1e-6}[dtype]
    np.testing.assert_allclose(found, wanted[rounds], rtol=allowed)


@dataclasses.dataclass
class Data:
  """As much of a stage's data as rounds ask for."""

  batches: dict
  compiled: Compiled = dataclasses.field(default_factory=Compiled)

  def steps_per_epoch(self, roles):
    (role,) = roles
    return self.batches[role]


def first_state(file, method, optimizer, per_epoch):
  """Returns the state before the first step."""
  student, teacher = (params(file, w, method) for w in ("student", "teacher"))
  state = toy.start(method, optimizer, student, teacher, per_epoch)
  if "average" in state.memory:  # the authors' starts at the student
    average = trees.flatten(student)
    average = {n: average[n] for n in state.memory["average"]}
    state = state.replace(memory={**state.memory, "average": average})
  return state


def walk(file, name, dtype):
  """Returns what the stored epochs, one after the other, leave."""
  data = Data({r: len(file[f"in/{ROLES[r]}_image"]) for r in ROLES})
  method, optimizer = build(name, file, dtype)
  per_epoch = method.steps_per_epoch(None, data)
  state = first_state(file, method, optimizer, per_epoch)
  passes = method.rounds(None, data)
  each = len(passes) // method.epochs
  seen = types.SimpleNamespace(kinds=[], steps=[], metrics=[], after={})
  for epoch in walked(file):
    state = state.replace(step=jnp.asarray(epoch * per_epoch, jnp.int32))
    for round_ in passes[each * epoch : each * (epoch + 1)]:
      step = steps.make_train_step(round_.loss, method.extra_args, optimizer)
      step = data.compiled(f"train/{round_.name}", step)
      ((role, _),) = round_.streams.items()
      seen.kinds.append(role)
      for number in range(round_.steps):
        batch = toy.batch(file, ROLES[role], number, dtype)
        state, metrics = step(state, {role: batch})
        seen.after.setdefault("after1", trees.flatten(state.params))
        seen.metrics.append(metrics)
        seen.steps.append(role)
      state = round_.finish(state)
    seen.after[f"after_super{epoch}"] = trees.flatten(state.params)
  seen.method, seen.memory = method, state.memory
  return seen


@pytest.mark.parametrize(
  ("dtype", "name"),
  [("float64", "scrub"), ("float64", "scrub_s")],
  indirect=["dtype"],
)
def test_epochs(file, dtype, name):
  run = walk(file, name, dtype)
  for kind, roles in (("pass", run.kinds), ("step", run.steps)):
    kinds = file[f"out/{name}/{kind}_kind"]
    assert roles == [("forget", "retain")[kind] for kind in kinds]
  found = {
    "loss": np.stack([metrics["loss"] for metrics in run.metrics]),
    "rate": np.stack([m["learning_rate/backbone"] for m in run.metrics]),
  }
  stored = {"loss": file[f"out/{name}/step_total"]}
  toy.check_leaves(found, stored, dtype=dtype, float32=OUT)
  # What is logged is float32; the rate of the step is not.
  rates = file[f"out/{name}/step_lr"]
  np.testing.assert_allclose(found["rate"], rates, rtol=1e-6)
  model, compared = run.method.model, 0
  for moment, found in run.after.items():
    if not any(key.startswith(f"{moment}/{name}/") for key in file):
      continue  # not stored
    stored = toy.leaves(file, f"{moment}/{name}/", model)
    if moment != "after1":  # some tensors of the first step
      assert found.keys() - stored.keys() == {"head/kernel"}
    toy.check_leaves(found, stored, dtype=dtype, float32=AFTER, absolute=True)
    compared += 1
  assert compared > 1
  assert ("average" in run.memory) == (name == "scrub_s")
  if name == "scrub_s":
    assert run.memory["averaged"] == len(walked(file))
    toy.check_leaves(
      run.memory["average"],
      toy.leaves(file, f"after_super{walked(file)[-1]}/average/", model),
      dtype=dtype,
      float32=AFTER,
      absolute=True,
    )
