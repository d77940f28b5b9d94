"""LoRA-Sub-DRS over three tasks (tests/golden/lora_sub/README.md)."""

import jax
import jax.numpy as jnp
import lora_sub_toy as toy
import numpy as np

from libml import scenarios
from libml import trees
from libml.devices.compiled import Compiled
from libml.train import steps


class Batches:
  """Stands in for StageData: the stored batches, in order, for all passes."""

  def __init__(self, batches, compiled):
    self.batches = batches
    self.compiled = compiled

  def accumulate(self, name, fn, state, *roles, augment=False):
    del roles, augment
    total = None
    for batch in self.batches:
      added = self.compiled(name, fn)(state.params, state.memory, batch)
      total = jax.tree.map(jnp.add, total, added) if total else added
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


def stored_head(file, prefix, task, params):
  """Returns the head with a task's columns taken from the file."""
  columns = np.arange(3 * task, 3 * task + 3)
  head = dict(params["head"])
  for theirs, ours in (("weight", "kernel"), ("bias", "bias")):
    value = file[f"{prefix}classifier_pool.{task}.{theirs}"].T
    head[ours] = jnp.asarray(head[ours]).at[..., columns].set(value)
  return head


def check_task(state, file, task):
  """Compares what a task leaves with the stored figures."""
  ours = trees.flatten(state.memory["sums"])
  for name, value in trees.flatten(
    toy.old_sums(file, f"task{task}/after/")
  ).items():
    toy.close(ours[name], value, 2e-5, name)
  seen = 3 * task + 3
  toy.close(
    state.memory["prototypes"][:seen],
    file[f"task{task}/after/prototypes"],
    5e-5,
  )
  assert state.memory["known"].tolist() == [c < seen for c in range(9)]


def check_tests(predict, state, file, task):
  """Compares features and predictions on the test images of seen tasks."""
  for old in range(task + 1):
    batch = {"image": toy.image(file[f"in/task{old}/test/image"])}
    outputs = predict(state.params, state.memory, batch)[""]
    folder = f"task{task}/after/test{old}/"
    toy.close(outputs["features"], file[f"{folder}features"], 5e-5)
    answers = jnp.argmax(outputs["logits"], axis=-1)
    np.testing.assert_array_equal(answers, file[f"{folder}predictions"])


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
    expected = toy.adapters(file, f"{folder}params/")
    assert len(expected) == 12
    for name, value in expected.items():
      toy.close(params[name], value, 5e-5, folder + name)
    head = stored_head(file, f"{folder}params/", task, state.params)
    for name, value in head.items():
      toy.close(params[f"head/{name}"], value, 2e-5, folder + name)
  return state


def test_three_tasks_of_the_whole_method(golden, tmp_path):
  file = golden("lora_sub", "end_to_end")
  whole = toy.method(triplet=0.2, margin=1.0)
  params = toy.read_params(file, tmp_path, whole.model)
  for task in range(3):
    params = {**params, "head": stored_head(file, "params/", task, params)}
  step_optimizer = toy.optimizer()
  state = steps.first_state(
    whole, step_optimizer, params, rng=jax.random.key(0)
  )
  step = jax.jit(
    steps.make_train_step(whole.loss, whole.extra_args, step_optimizer)
  )
  compiled, predict = Compiled(), jax.jit(whole.predict)
  for task in range(3):
    data = Batches(read_batches(file, task), compiled)
    classes = tuple(range(3 * task, 3 * task + 3))
    stage = scenarios.Stage(task, "learn", {}, {}, {"learn": classes})
    state = whole.before_stage(state, stage, data)
    if task:
      for i in range(3):
        theirs, block = f"task{task}/blocks.{i}/", f"encoderblock_{i}"
        assert state.memory["kept"][block] == file[f"{theirs}kept"]
        toy.close(
          state.memory["projectors"][block], file[f"{theirs}projection"], 1e-4
        )
    drawn = toy.adapters(file, f"in/task{task}/init/")
    assert len(drawn) == 6
    state = state.replace(params=trees.update(state.params, drawn))
    state = steps.begin_stage(
      state,
      task + 2,
      len(data.batches),
      jax.random.key(0),
      tx=step_optimizer.tx,
      restart=True,
    )
    state = check_steps(step, state, file, task, data.batches)
    state = whole.after_stage(state, stage, data)
    check_task(state, file, task)
    check_tests(predict, state, file, task)
