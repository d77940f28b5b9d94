"""LoRA-Sub-DRS over three tasks (tests/golden/lora_sub/README.md)."""

import jax
import jax.numpy as jnp
import lora_sub_toy as toy
import numpy as np
from unlearn_toy import remembering

from libml import scenarios
from libml import trees
from libml.devices.compiled import Compiled
from libml.train import steps
from methods.parts import subspace

FIGURES = {"lora_sub/end_to_end": {}}


class Batches:
  """Stands in for StageData: the stored batches, in order, for all passes.

  Attributes:
    batches: Of the task.
    compiled: Compiles a function once for all tasks.
    totals: Name of a pass -> what it summed up.
  """

  def __init__(self, batches, compiled):
    self.batches = batches
    self.compiled = compiled
    self.totals = {}

  def accumulate(self, name, fn, state, *roles, augment=False):
    del roles, augment
    total = None
    for batch in self.batches:
      added = self.compiled(name, fn)(state.params, state.memory, batch)
      total = jax.tree.map(jnp.add, total, added) if total else added
    self.totals[name] = total
    return total

  def steps_per_epoch(self, roles):
    del roles
    return len(self.batches)


def read_batches(file, task):
  batches, number = [], 0
  while f"in/task{task}/batch{number}/image" in file:
    folder = f"in/task{task}/batch{number}/"
    label = jnp.asarray(file[f"{folder}label"], jnp.int32)
    batches.append(
      {
        "image": toy.image(file[f"{folder}image"]),
        "label": label,
        "mask": jnp.ones(len(label), bool),
      }
    )
    number += 1
  return batches


def task_classes(file, task):
  count = int(file["cfg/classes_per_task"])
  return tuple(range(count * task, count * (task + 1)))


def count_tasks(file):
  return len([key for key in file if key.endswith("/after/accuracies")])


def head_columns(file, prefix, task):
  """Returns a task's columns of the head, by our names."""
  folder = f"{prefix}classifier_pool.{task}."
  return {
    "kernel": file[f"{folder}weight"].T,
    "bias": file[f"{folder}bias"],
  }


def with_columns(file, prefix, task, head):
  """Returns the head with a task's columns taken from the file."""
  at = np.array(task_classes(file, task))
  return {
    name: jnp.asarray(head[name]).at[..., at].set(value)
    for name, value in head_columns(file, prefix, task).items()
  }


def check_subspaces(state, data, file, task):
  """Compares what the pass before a task finds, block by block."""
  model = toy.model(file)
  images = sum(len(batch["label"]) for batch in data.batches)
  for i in range(model.depth):
    theirs, block = f"task{task}/blocks.{i}/", f"encoderblock_{i}"
    seen = data.totals["second_moments"][block]
    mean = seen / (images * (1 + model.num_patches))
    matrix = file[f"{theirs}matrix"]
    toy.close(mean, matrix, 1e-5 * matrix.max(), theirs)
    values, _ = subspace.eigen(mean)
    expected = file[f"{theirs}eigenvalues"]
    toy.close(values, expected, 1e-5 * expected.max(), theirs)
    assert state.memory["kept"][block] == file[f"{theirs}kept"]
    projector = state.memory["projectors"][block]
    toy.close(projector, file[f"{theirs}projection"], 1e-4, theirs)


def check_task(state, file, task):
  """Compares what a task leaves with the stored figures."""
  ours = trees.flatten(state.memory["sums"])
  stored = toy.old_sums(file, f"task{task}/after/", toy.model(file))
  stored = trees.flatten(stored)
  assert stored.keys() == ours.keys()
  for name, value in stored.items():
    toy.close(ours[name], value, 2e-5, name)
  means = file[f"task{task}/after/prototypes"]
  known = state.memory["known"]
  toy.close(state.memory["prototypes"][: len(means)], means, 5e-5)
  assert known.tolist() == [c < len(means) for c in range(len(known))]


def check_tests(predict, state, file, task):
  """Compares features and predictions on the test images of seen tasks."""
  accuracies = file[f"task{task}/after/accuracies"]
  assert len(accuracies) == task + 1
  for old, accuracy in enumerate(accuracies):
    batch = {"image": toy.image(file[f"in/task{old}/test/image"])}
    outputs = predict(state.params, state.memory, batch)[""]
    folder = f"task{task}/after/test{old}/"
    toy.close(outputs["features"], file[f"{folder}features"], 5e-5)
    predictions = jnp.argmax(outputs["logits"], axis=-1)
    np.testing.assert_array_equal(predictions, file[f"{folder}predictions"])
    hits = np.mean(predictions == file[f"in/task{old}/test/label"])
    toy.close(hits, accuracy, 1e-6)


def check_leaves(ours, file, prefix, task, tolerances):
  """Compares adapters and a task's head columns, if they are stored.

  Args:
    ours: Leaves by name.
    file: The stored ones.
    prefix: Of their keys.
    task: Whose columns.
    tolerances: Functions of a stored array, of the adapters and of the head.
  """
  lora, head = tolerances
  stored = toy.adapters(file, prefix)
  assert set(stored) == {name for name in ours if "/lora_" in name}
  for name, value in stored.items():
    toy.close(ours[name], value, lora(value), prefix + name)
  at = np.array(task_classes(file, task))
  for name, value in head_columns(file, prefix, task).items():
    columns = np.asarray(ours[f"head/{name}"])[..., at]
    toy.close(columns, value, head(value), prefix + name)


def check_steps(step, state, file, task, batches):
  """Takes a task's steps, each compared; returns the state after them."""
  for number, batch in enumerate(batches):
    state, got = step(state, {"train": batch})
    folder = f"task{task}/step{number}/"
    for name in ("loss", "cross_entropy", "triplet"):
      theirs = file[folder + name]
      toy.close(got[name], theirs, 1e-5 * abs(theirs), folder + name)
    for group in ("lora", "head"):
      assert got[f"learning_rate/{group}"] == file[f"{folder}lr_{group}"]
    params = trees.flatten(state.params)
    fixed = (lambda _: 5e-5, lambda _: 2e-5)
    check_leaves(params, file, f"{folder}params/", task, fixed)
    if any(key.startswith(f"{folder}grad/") for key in file):
      grads = trees.flatten(state.opt_state[0])
      scaled = (lambda x: 1e-4 * abs(x).max(),) * 2
      check_leaves(grads, file, f"{folder}grad/", task, scaled)
  assert f"task{task}/step{len(batches)}/loss" not in file
  return state


def begin(file, tmp_path):
  """Returns the method, its optimizer, and the state before the first task."""
  tasks = count_tasks(file)
  module = toy.model(file, num_classes=len(task_classes(file, 0)) * tasks)
  method = toy.method(
    module,
    num_stages=tasks,
    epochs=int(file["cfg/epochs"]),
    triplet=float(file["cfg/lambda_"]),
    margin=float(file["cfg/margin"]),
    threshold=float(file["cfg/threshold"]),
  )
  params = toy.read_params(file, tmp_path, module)
  for task in range(tasks):
    head = with_columns(file, "params/", task, params["head"])
    params = {**params, "head": head}
  optimizer = remembering(
    toy.optimizer(
      file, l2=float(file["cfg/weight_decay"]), epochs=method.epochs
    )
  )
  state = steps.first_state(method, optimizer, params, rng=jax.random.key(0))
  return method, optimizer, state


def test_all_tasks_of_the_whole_method(golden, tmp_path):
  file = golden("lora_sub", "end_to_end")
  method, optimizer, state = begin(file, tmp_path)
  step = jax.jit(
    steps.make_train_step(method.loss, method.extra_args, optimizer)
  )
  compiled, predict = Compiled(), jax.jit(method.predict)
  for task in range(method.num_stages):
    data = Batches(read_batches(file, task), compiled)
    learn = {"learn": task_classes(file, task)}
    stage = scenarios.Stage(task, "learn", {}, {}, learn)
    state = method.before_stage(state, stage, data)
    if task:
      check_subspaces(state, data, file, task)
    drawn = toy.adapters(file, f"in/task{task}/init/")
    added = [n for n in trees.flatten(state.params) if n.endswith("/lora_a")]
    assert sorted(drawn) == sorted(added)
    state = state.replace(params=trees.update(state.params, drawn))
    state = steps.begin_stage(
      state,
      task + 2,
      len(data.batches),
      jax.random.key(0),
      tx=optimizer.tx,
      restart=True,
    )
    taken = data.batches * method.epochs
    state = check_steps(step, state, file, task, taken)
    state = method.after_stage(state, stage, data)
    check_task(state, file, task)
    check_tests(predict, state, file, task)
