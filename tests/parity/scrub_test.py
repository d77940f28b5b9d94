"""SCRUB and SCRUB-S against the reference (golden/gslora)."""

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

OUT, GRAD, AFTER = 2e-5, 5e-5, 5e-6
EPOCHS = 10
ROLES = {"forget": "forget", "retain": "remain"}
# Batches of the two kinds, and so the steps of an epoch.
BATCHES = {"forget": 2, "retain": 3}
STEPS = 5 * 2 + 10 * 3


@pytest.fixture(scope="module")
def file(golden):
  return golden("gslora", "scrub")


@pytest.fixture
def dtype(request):
  """Returns a type in which a test runs."""
  with face_toy.precision(request.param):
    yield request.param


both_types = pytest.mark.parametrize("dtype", face_toy.TYPES, indirect=True)


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
  method, optimizer = toy.build("scrub_s", dtype)
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
  method, optimizer = toy.build("scrub_s", dtype)
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
  method, optimizer = toy.build("scrub_s", "float32")
  memory = averaged(file, method, optimizer)
  student = params(file, "student", method)
  flat = trees.flatten(student)
  apart = sum(losses.norm(flat[n] - x) for n, x in memory["average"].items())
  assert method.smoothing * apart > 1.01 * method.smooth(student, memory)


def test_rate_drops_in_the_last_three_epochs(file):
  rate = schedules.build("late_drop", lr=1e-4, epochs=EPOCHS, min_lr=1e-5)
  for epoch, wanted in enumerate(file["out/lr_table"]):
    # After a step the clock shows the part of the epoch that is done.
    clock = epoch + (np.arange(STEPS) + 1) / STEPS
    found = rate(jnp.asarray(clock, jnp.float32)).reshape(10, -1)
    wanted = np.broadcast_to(wanted[:, None], found.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


class Data:
  """As much of a stage's data as rounds ask for."""

  def __init__(self):
    self.compiled = Compiled()

  def steps_per_epoch(self, roles):
    (role,) = roles
    return BATCHES[role]


def walk(file, name, dtype):
  """Returns what epochs 0 and 7, one after the other, leave."""
  data = Data()
  method, optimizer = toy.build(name, dtype, epochs=EPOCHS)
  student, teacher = (params(file, w, method) for w in ("student", "teacher"))
  assert method.steps_per_epoch(None, data) == STEPS
  state = toy.start(method, optimizer, student, teacher, STEPS)
  if "average" in state.memory:  # the authors' starts at the student
    average = trees.flatten(student)
    average = {n: average[n] for n in state.memory["average"]}
    state = state.replace(memory={**state.memory, "average": average})
  passes = method.rounds(None, data)
  assert len(passes) == 15 * EPOCHS
  seen = types.SimpleNamespace(kinds=[], metrics=[], after={})
  for epoch in (0, 7):
    state = state.replace(step=jnp.asarray(epoch * STEPS, jnp.int32))
    for round_ in passes[15 * epoch : 15 * (epoch + 1)]:
      step = steps.make_train_step(round_.loss, method.extra_args, optimizer)
      step = data.compiled(f"train/{round_.name}", step)
      ((role, _),) = round_.streams.items()
      seen.kinds.append(role)
      for number in range(round_.steps):
        batch = toy.batch(file, ROLES[role], number, dtype)
        state, metrics = step(state, {role: batch})
        seen.metrics.append(metrics)
      state = round_.finish(state)
    seen.after[epoch] = trees.flatten(state.params)
  seen.model, seen.memory = method.model, state.memory
  return seen


@pytest.mark.parametrize(
  ("dtype", "name"),
  [("float64", "scrub"), ("float32", "scrub_s")],
  indirect=["dtype"],
)
def test_two_epochs(file, dtype, name):
  run = walk(file, name, dtype)
  kinds = file[f"out/{name}/pass_kind"]
  assert run.kinds == [("forget", "retain")[kind] for kind in kinds]
  rates = [metrics["learning_rate/backbone"] for metrics in run.metrics]
  np.testing.assert_allclose(rates, file[f"out/{name}/step_lr"], rtol=1e-6)
  found = {"loss": np.stack([metrics["loss"] for metrics in run.metrics])}
  stored = {"loss": file[f"out/{name}/step_total"]}
  toy.check_leaves(found, stored, dtype=dtype, float32=OUT)
  for epoch, found in run.after.items():
    if (epoch, name) == (7, "scrub"):
      continue  # not stored
    stored = toy.leaves(file, f"after_super{epoch}/{name}/", run.model)
    assert found.keys() - stored.keys() == {"head/kernel"}
    toy.check_leaves(found, stored, dtype=dtype, float32=AFTER, absolute=True)
  assert ("average" in run.memory) == (name == "scrub_s")
  if name == "scrub_s":
    assert run.memory["averaged"] == 2
    toy.check_leaves(
      run.memory["average"],
      toy.leaves(file, "after_super7/average/", run.model),
      dtype=dtype,
      float32=AFTER,
      absolute=True,
    )
