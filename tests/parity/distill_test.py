"""LwF, DER, DER++ and FDR against the reference (golden/gslora)."""

import itertools

import face_toy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import unlearn_toy as toy

from libml import trees
from libml.problems import losses
from libml.train import steps
from methods import METHODS

FIGURES = {"gslora/distill_losses": {}, "gslora/distill_steps": {}}
EXACT = dict(float32=1e-6, float64=1e-12)
OUT, GRAD, AFTER = 5e-5, 1e-4, 2e-6


@pytest.fixture
def dtype(request):
  """Returns a type in which a test runs."""
  with face_toy.precision(request.param):
    yield request.param


both_types = pytest.mark.parametrize("dtype", face_toy.TYPES, indirect=True)


def distance(name, **options):
  """Returns a method's distance of a student from a teacher."""
  row = METHODS[name](
    model=None, problem=None, num_classes=1, num_stages=1, **options
  )

  def of(key):
    return lambda s, t: row.distance({key: s}, {key: t})

  return of("features" if name.startswith("der") else "logits")


# Stored name -> (what it is of, temperature -> distance).
LOSSES = {
  "lwf_dead": (
    "logits",
    lambda t: distance("lwf", dead=True, temperature=t),
  ),
  "lwf_correct": ("logits", lambda t: distance("lwf", temperature=t)),
  "scrub_kd": (
    "logits",
    lambda t: lambda ours, theirs: losses.distillation(ours, theirs, t),
  ),
  "der": ("emb", lambda _: distance("der")),
  "fdr": ("logits", lambda _: distance("fdr")),
}


def given(file, name, dtype):
  """Returns a loss, and the student and the teacher that it compares."""
  kind, loss = LOSSES[name]
  pair = [
    jnp.asarray(file[f"in/{who}_{kind}"], dtype)
    for who in ("student", "teacher")
  ]
  return loss(face_toy.meta(file)["T"]), *pair


@both_types
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradient(golden, dtype, name):
  file = golden("gslora", "distill_losses")
  loss, student, teacher = given(file, name, dtype)
  value, grad = jax.value_and_grad(loss)(student, teacher)
  found = {"value": value, "grad": grad}
  stored = {"value": file[f"out/{name}"], "grad": file[f"grad/{name}"]}
  toy.check_leaves(found, stored, dtype=dtype, **EXACT)


@both_types
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_where_student_and_teacher_are_one(golden, dtype, name):
  file = golden("gslora", "distill_losses")
  loss, student, _ = given(file, name, dtype)
  value, grad = jax.value_and_grad(loss)(student, student)
  if f"out/{name}_same" in file:
    assert value == file[f"out/{name}_same"]
    np.testing.assert_array_equal(grad, file[f"grad/{name}_same"])
  # The softmax's gradient is a difference of equal sums.
  assert value == 0 and abs(grad).max() < 1e-6


@both_types
def test_probability_that_underflows_has_a_finite_gradient(golden, dtype):
  file = golden("gslora", "distill_losses")
  logits = jnp.asarray(file["in/underflow_logits"], dtype)
  assert file["out/lwf_dead_underflow_grad_has_nan"]
  for name in ("lwf_dead", "lwf_correct"):
    loss = LOSSES[name][1](face_toy.meta(file)["T"])
    value, grad = jax.value_and_grad(loss)(logits, logits[:, ::-1])
    assert np.isfinite(grad).all(), name
    if name == "lwf_dead":
      assert value == file["out/lwf_dead_underflow"]


# Ours -> theirs: of the method, and of its distance.
NAMES = {"lwf": "lwf", "der": "der", "der_plus": "derpp", "fdr": "fdr"}
PARTS = {"lwf": "kd", "der": "der", "der_plus": "der", "fdr": "fdr"}
# Ours -> theirs: options of the methods.
OPTIONS = {
  "lwf": {
    "distill": "lambda_kd",
    "retain": "lambda_remain",
    "temperature": "temperature",
  },
  "der": {"distill": "lambda_der"},
  "der_plus": {"distill": "lambda_der", "retain": "lambda_der_plus"},
  "fdr": {"distill": "reg_lambda"},
}


def begin(file, name, dtype):
  """Returns method, optimizer, student and teacher of the stored run."""
  settings = face_toy.meta(file)
  numbers = settings["methods"][NAMES[name]]
  step = {"lr": numbers["lr"], "weight_decay": settings["weight_decay"]}
  options = {ours: numbers[theirs] for ours, theirs in OPTIONS[name].items()}
  method, optimizer = toy.build(name, file, dtype, step=step, **options)
  student, teacher = (
    toy.tree(toy.leaves(file, f"params/{who}/", method.model), method.model)
    for who in ("student", "teacher")
  )
  return method, optimizer, student, teacher


# One method in float32 is enough: the parts of the losses stand above.
@pytest.mark.parametrize(
  ("dtype", "name"),
  [*(("float64", name) for name in NAMES), ("float32", "der_plus")],
  indirect=["dtype"],
)
def test_steps(golden, dtype, name):
  file, theirs = golden("gslora", "distill_steps"), NAMES[name]
  method, optimizer, student, teacher = begin(file, name, dtype)
  count = len(file[f"out/{theirs}/total"])
  state = toy.start(method, optimizer, student, teacher, count)
  # No class is to forget, so labels stay as they are given.
  assert not state.memory["forget"].any()
  step = jax.jit(
    steps.make_train_step(method.loss, method.extra_args, optimizer)
  )
  # Each stream takes the next batch; DER++ has two of those to retain.
  remain = itertools.count()
  for number in range(count):
    data = {
      key: toy.batch(file, "forget", number, dtype)
      if key == "forget"
      else toy.batch(file, "remain", next(remain), dtype)
      for key in ("forget", "retain", "again")
      if key in method.streams
    }
    state, metrics = step(state, data)
    wanted = {"loss": "total", "forget": "ce", "distill": PARTS[name]}
    wanted |= {"retain": "remain"} if name == "lwf" else {}
    stored = {
      ours: file[f"out/{theirs}/{part}"][number]
      for ours, part in wanted.items()
    }
    toy.check_leaves(metrics, stored, dtype=dtype, float32=OUT)
    if not number:
      grads = trees.flatten(state.opt_state[0])
      stored = toy.leaves(file, f"grad/{theirs}/", method.model)
      toy.check_leaves(grads, stored, dtype=dtype, float32=GRAD)
  stored = toy.leaves(file, f"after{count}/{theirs}/", method.model)
  found = trees.flatten(state.params)
  assert found.keys() - stored.keys() == {"head/kernel"}
  toy.check_leaves(found, stored, dtype=dtype, float32=AFTER, absolute=True)
  np.testing.assert_array_equal(
    found["head/kernel"], trees.flatten(student)["head/kernel"]
  )
