"""LIRF against the reference (golden/gslora)."""

import dataclasses

import face_toy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import unlearn_toy as toy

from libml import trees
from libml.train import steps
from methods import lirf

FIGURES = {"gslora/lirf": {}}
OUT, GRAD, AFTER = 1e-5, 5e-5, 1e-6


@pytest.fixture(scope="module")
def file(golden):
  return golden("gslora", "lirf")


@pytest.fixture(params=["float64"])
def dtype(request):
  """Returns a type in which a test runs."""
  with face_toy.precision(request.param):
    yield request.param


def forgotten(file):
  """Returns which classes go: as many as in the file, but the last ones.

  The reference takes the first.
  """
  split, total = (
    face_toy.meta(file)["lirf"]["split"],
    face_toy.num_classes(file),
  )
  return np.arange(total) >= total - split


def with_given_labels(method):
  """Returns a method that leaves the labels to forget as they are."""

  class Given(type(method)):
    def wrong(self, memory, batch, rng):
      del memory, rng
      return dict(batch)

  fields = dataclasses.fields(method)
  return Given(**{field.name: getattr(method, field.name) for field in fields})


def begin(file, dtype):
  """Returns method, optimizer, and the state before the first step."""
  numbers = face_toy.meta(file)["lirf"]
  shares = numbers["weights"]
  method, optimizer = toy.build(
    "lirf",
    file,
    dtype,
    step={key: numbers[key] for key in ("lr", "weight_decay")},
    mixed=numbers["alpha"],
    temperature=numbers["T"],
    attention=-shares["at"],
    distill=shares["kd"],
    deposit=shares["deposit"],
    retain=shares["replay"],
  )
  method = with_given_labels(method)
  model = method.model
  given = toy.leaves(file, "params/teacher/", model)
  student, deposit = (
    toy.tree({**given, **lower(file, f"params/{who}_low/", method)}, model)
    for who in ("student", "deposit")
  )
  teacher = method.init_params(toy.tree(given, model), None)
  student = {**method.init_params(deposit, None), **student}
  count = len(file["out/total"])
  state = toy.start(method, optimizer, student, teacher, count)
  memory = {**state.memory, "forget": jnp.asarray(forgotten(file))}
  return method, optimizer, state.replace(memory=memory)


def lower(file, prefix, method):
  """Returns what is stored of a lower half, by our names."""
  found = toy.leaves(file, prefix, method.model)
  return {n: x for n, x in found.items() if method.is_low(n)}


def batch(file, number, dtype):
  return {
    "forget": toy.batch(file, "forget", number, dtype),
    "retain": toy.batch(file, "remain", number, dtype),
  }


def test_steps(file, dtype):
  method, optimizer, state = begin(file, dtype)
  assert method.by_position
  first = trees.flatten(state.params)
  step = jax.jit(
    steps.make_train_step(method.loss, method.extra_args, optimizer)
  )
  share = 1 - method.mixed  # the authors tell the cross entropy with it
  for number in range(len(file["out/total"])):
    state, metrics = step(state, batch(file, number, dtype))
    names = {
      "loss": "total",
      "attention": "at",
      "distill": "kd",
      "deposit": "deposit",
      "retain": "replay",
    }
    stored = {o: file[f"out/{theirs}"][number] for o, theirs in names.items()}
    stored["forget"] = file["out/ce"][number] / share
    toy.check_leaves(metrics, stored, dtype=dtype, float32=OUT)
    if not number:
      grads = trees.flatten(state.opt_state[0])
      stored = lower(file, "grad/student_low/", method)
      assert stored.keys() == {n for n in first if method.is_low(n)}
      toy.check_leaves(grads, stored, dtype=dtype, float32=GRAD)
      stored = lower(file, "grad/deposit_low/", method)
      stored = {f"deposit/{name}": value for name, value in stored.items()}
      toy.check_leaves(grads, stored, dtype=dtype, float32=GRAD)
    found = trees.flatten(state.params)
    stored = lower(file, f"after{number + 1}/", method)
    toy.check_leaves(found, stored, dtype=dtype, float32=AFTER, absolute=True)
  still = found.keys() - stored.keys()
  assert {name.split("/")[0] for name in still} >= {"deposit", "head"}
  for name in still:
    np.testing.assert_array_equal(found[name], first[name], err_msg=name)


def test_halves(file, dtype):
  method, _, state = begin(file, dtype)
  rows = toy.batch(file, "forget", 0, dtype)
  apply = jax.jit(method.halfway)
  outputs, tokens = apply(state.params, rows)
  teacher = method.teacher(state.params, state.memory)
  taught, before = apply(teacher, rows)
  deposit = trees.update(state.params, state.params["deposit"])
  found = {
    "student_low": tokens,
    "teacher_low": before,
    "at_map_student": lirf.attention_map(tokens),
    "at_map_teacher": lirf.attention_map(before),
    "student_logits": outputs["logits"],
    "teacher_logits": taught["logits"],
    "deposit_logits": apply(deposit, rows)[0]["logits"],
  }
  stored = {name: file[f"out/{name}"] for name in found}
  toy.check_leaves(found, stored, dtype=dtype, float32=OUT)


def test_attention_maps(file, dtype):
  x, y = (jnp.asarray(file[f"in/at/{name}"], dtype) for name in "xy")

  def distance(x):
    maps = lirf.attention_map(x), lirf.attention_map(y)
    return jnp.mean((maps[0] - maps[1]) ** 2), maps

  (value, maps), grad = jax.value_and_grad(distance, has_aux=True)(x)
  found = {"loss": value, "map_x": maps[0], "map_y": maps[1]}
  stored = {name: file[f"out/at_alone/{name}"] for name in found}
  toy.check_leaves(found, stored, dtype=dtype, float32=OUT)
  stored = {"x": file["grad/at_alone/x"]}
  toy.check_leaves({"x": grad}, stored, dtype=dtype, float32=GRAD)
  # An entry below the threshold is a constant.
  low = ~np.any(file["out/at_alone/map_x"], axis=0)
  assert low.any()
  for entry in range(len(low)):
    grad = jax.grad(lambda x, d=entry: lirf.attention_map(x)[0, d])(x)
    assert grad.any() == (not low[entry]), entry


def test_classes_that_go_are_told_by_id(file):
  by_place, _, state = begin(file, "float32")
  by_id = dataclasses.replace(by_place, by_position=False)
  last, split = forgotten(file), face_toy.meta(file)["lirf"]["split"]
  first = np.arange(len(last)) < split
  for method, gone in ((by_place, first), (by_id, last)):
    goes, stays = method.columns(state.memory)
    np.testing.assert_array_equal(goes, gone)
    np.testing.assert_array_equal(stays, ~gone)
