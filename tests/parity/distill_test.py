"""LwF, DER, DER++ and FDR against the reference (golden/gslora)."""

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
    model=None, problem=None, num_classes=10, num_stages=1, **options
  )

  def of(key):
    return lambda s, t: row.distance({key: s}, {key: t})

  return of("features" if name.startswith("der") else "logits")


# Stored name -> (what it is of, distance).
LOSSES = {
  "lwf_dead": ("logits", distance("lwf", dead=True)),
  "lwf_correct": ("logits", distance("lwf")),
  "scrub_kd": ("logits", lambda s, t: losses.distillation(s, t, 2.0)),
  "der": ("emb", distance("der")),
  "fdr": ("logits", distance("fdr")),
}


@both_types
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradient(golden, dtype, name):
  file = golden("gslora", "distill_losses")
  kind, loss = LOSSES[name]
  student, teacher = (
    jnp.asarray(file[f"in/{who}_{kind}"], dtype)
    for who in ("student", "teacher")
  )
  value, grad = jax.value_and_grad(loss)(student, teacher)
  found = {"value": value, "grad": grad}
  stored = {"value": file[f"out/{name}"], "grad": file[f"grad/{name}"]}
  toy.check_leaves(found, stored, dtype=dtype, float32=1e-6)


@both_types
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_where_student_and_teacher_are_one(golden, dtype, name):
  file = golden("gslora", "distill_losses")
  kind, loss = LOSSES[name]
  student = jnp.asarray(file[f"in/student_{kind}"], dtype)
  value, grad = jax.value_and_grad(loss)(student, student)
  assert value == file.get(f"out/{name}_same", 0.0)
  # The softmax's gradient is a difference of equal sums.
  assert abs(grad).max() < 1e-6
  assert (name not in ("der", "fdr")) or not grad.any()


@both_types
def test_probability_that_underflows_has_a_finite_gradient(golden, dtype):
  file = golden("gslora", "distill_losses")
  logits = jnp.asarray(file["in/underflow_logits"], dtype)
  assert file["out/lwf_dead_underflow_grad_has_nan"]
  for name in ("lwf_dead", "lwf_correct"):
    loss = LOSSES[name][1]
    grad = jax.grad(loss)(logits, logits[:, ::-1])
    assert np.isfinite(grad).all(), name


# Ours -> theirs: of the method, and of its distance.
NAMES = {"lwf": "lwf", "der": "der", "der_plus": "derpp", "fdr": "fdr"}
PARTS = {"lwf": "kd", "der": "der", "der_plus": "der", "fdr": "fdr"}
# DER++ takes two batches to retain a step, the others one.
RETAIN = {"der_plus": [(0, 1), (2, 0)]}


# One method in float32 is enough: the parts of the losses stand above.
@pytest.mark.parametrize(
  ("dtype", "name"),
  [*(("float64", name) for name in NAMES), ("float32", "der_plus")],
  indirect=["dtype"],
)
def test_two_steps(golden, dtype, name):
  file, theirs = golden("gslora", "distill_steps"), NAMES[name]
  # The value of one request; the preset is that of four.
  changes = {"retain": 0.5} if name == "der_plus" else {}
  method, optimizer = toy.build(name, dtype, **changes)
  student, teacher = (
    toy.tree(toy.leaves(file, f"params/{who}/", method.model), method.model)
    for who in ("student", "teacher")
  )
  state = toy.start(method, optimizer, student, teacher, 2)
  # No class is to forget, so labels stay as they are given.
  assert not state.memory["forget"].any()
  step = jax.jit(
    steps.make_train_step(method.loss, method.extra_args, optimizer)
  )
  for number, (first, second) in enumerate(RETAIN.get(name, [(0, 0), (1, 1)])):
    data = {
      "forget": toy.batch(file, "forget", number, dtype),
      "retain": toy.batch(file, "remain", first, dtype),
      "again": toy.batch(file, "remain", second, dtype),
    }
    data = {key: data[key] for key in method.streams}
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
  stored = toy.leaves(file, f"after2/{theirs}/", method.model)
  found = trees.flatten(state.params)
  assert found.keys() - stored.keys() == {"head/kernel"}
  toy.check_leaves(found, stored, dtype=dtype, float32=AFTER, absolute=True)
  np.testing.assert_array_equal(
    found["head/kernel"], trees.flatten(student)["head/kernel"]
  )
