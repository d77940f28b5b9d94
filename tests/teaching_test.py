"""A teacher: once a request, in no checkpoint, and not twice in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

import main
from configs import digits_baselines
from libml import trees
from libml.train.observer import Observer
from libml.train.walk import Interrupted
from models import pretrained


def config(method, **changes):
  """Returns a smoke run of a Face Transformer; LIRF has two blocks to cut."""
  found = digits_baselines.get_config(f"smoke,method={method}")
  found.model = {
    "name": "face_vit",
    "variant": "smoke",
    "image_size": 8,
    "depth": 2 if method == "lirf" else 1,
    "dropout": 0.0,
    "lora": None,
  }
  return toy.change(found, changes)


class Begun(Observer):
  """Ends a run before its first step."""

  def on_start(self, run, state):
    self.run, self.state = run, state
    raise Interrupted


def begin(config, workdir):
  """Returns a run before its first step: of request 1, with its data."""
  seen = Begun()
  with pytest.raises(Interrupted):
    main.execute(config, workdir, observer=seen)
  seen.method, stage = seen.run.method, seen.run.scenario.stages[0]
  seen.data = seen.run.data(stage)
  seen.state = seen.method.before_stage(seen.state, stage, seen.data)
  seen.rounds = {r.name: r for r in seen.method.rounds(stage, seen.data)}
  # What training does to a student.
  trained = seen.state.memory["teacher"]
  moved = {name: leaf * 1.1 for name, leaf in trained.items()}
  seen.student = trees.update(seen.state.params, moved)
  return seen


METHODS = ("lwf", "der_plus", "scrub_s", "lirf", "bad_teacher")


@pytest.fixture(scope="module", params=METHODS)
def taught(request, tmp_path_factory):
  """Returns methods with a teacher of each kind."""
  workdir = tmp_path_factory.mktemp(request.param)
  return begin(config(request.param), workdir)


def test_what_a_teacher_said_serves_for_asking_it(taught):
  method, state = taught.method, taught.state
  data = taught.data.tabulate(method.prepare, state, *method.prepared)
  # Nobody asks this one: so is the teacher's trunk in no step.
  silent = {n: jnp.full_like(x, jnp.nan) for n, x in teacher(state).items()}
  silent = {**state.memory, "teacher": silent}
  for round_ in taught.rounds.values():
    asked, told = (
      next(source.stream(round_.streams, 0, 0))
      for source in (taught.data, data)
    )
    rows = {name for part in told.values() for name in part}
    assert "teacher" in rows
    assert not any("teacher" in part for part in asked.values())
    loss, rng = jax.jit(round_.loss), jax.random.key(0)
    found, _ = loss(taught.student, silent, told, rng)
    wanted, _ = loss(taught.student, state.memory, asked, rng)
    assert np.isfinite(found)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    same, _ = loss(state.params, state.memory, asked, rng)
    assert same != wanted, "the student counts"


def teacher(state):
  return state.memory["teacher"]


def test_no_checkpoint_holds_the_teacher(taught):
  held = taught.run.changing(taught.state)
  assert not {name for name in held if name.startswith("memory/teacher/")}
  assert {f"params/{name}" for name in teacher(taught.state)} <= held.keys()


def test_of_frozen_weights_there_is_no_second_copy(taught):
  trainable = taught.run.optimizer.groups.trainable(taught.state.params)
  trained = {n for n, on in trees.flatten(trainable).items() if on}
  assert teacher(taught.state).keys() == trained
  assert "head/kernel" not in trained
  params = trees.flatten(taught.state.params)
  frozen = [params[n].size for n in params.keys() - trained]
  assert sum(frozen) > 0


def test_margin_of_the_teacher_is_on_the_label_that_is_given(taught):
  method, state = taught.method, taught.state
  rows = next(taught.data.sweep(taught.data.train["forget"]))
  given = (rows["label"] + 1) % method.num_classes
  told = {**rows, **method.prepare(taught.student, state.memory, rows)}
  found = method.taught(taught.student, state.memory, {**told, "label": given})
  params = trees.update(taught.student, teacher(state))
  outputs = method.apply(params, {**rows, "label": given})
  np.testing.assert_allclose(
    found["logits"], outputs["logits"], rtol=1e-5, atol=1e-5
  )
  plain = outputs["readings"]["_no_margin"]
  off = np.argmax(abs(plain - found["logits"]), axis=-1)
  np.testing.assert_array_equal(off, given)
  size = np.max(abs(plain - found["logits"]), axis=-1)
  np.testing.assert_allclose(size, 64 * 0.35, rtol=1e-4)


def test_images_that_are_augmented_ask_the_teacher_in_the_step(tmp_path):
  seen = begin(config("fdr", preprocess__train="crop_flip"), tmp_path)
  method, state = seen.method, seen.state
  data = seen.data.tabulate(method.prepare, state, *method.prepared)
  assert data is seen.data
  batch = next(data.stream(seen.rounds["train"].streams, 0, 0))
  assert batch["retain"].keys() == {"image", "label"}


def test_another_teacher_is_refused_when_a_run_goes_on(tmp_path):
  seen = begin(config("fdr"), tmp_path / "first")
  file = tmp_path / "params.npz"
  given = jax.device_get(seen.state.params)
  pretrained.save(file, given)
  run = config("fdr", init_checkpoint=str(file), random_init=False)
  asked = []

  def should_stop():
    asked.append(True)
    return len(asked) == 2

  with pytest.raises(Interrupted):
    main.execute(run, tmp_path / "run", should_stop)
  # Weights that are trained: without a teacher, checkpoints would hold them.
  pretrained.save(file, jax.device_get(seen.student))
  with pytest.raises(ValueError, match="not those with which this run started"):
    main.execute(run, tmp_path / "run", lambda: True)
  pretrained.save(file, given)
  with pytest.raises(Interrupted):
    main.execute(run, tmp_path / "run", lambda: True)
