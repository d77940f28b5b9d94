"""Exemplars: which are kept, what their loss sees, and whether they help."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import tiny

import main
from configs import common
from configs import digits_reference
from libml import datasets
from libml import scenarios
from libml.train import rehearsal
from libml.train import weights
from libml.train.walk import Interrupted

CLASSES = 6


@pytest.fixture(scope="module")
def scenario():
  """Returns three tasks of two classes, 16 images each."""
  source = datasets.DATASETS["synthetic"](num_classes=6, per_class=16, size=8)
  return scenarios.SCENARIOS["class_incremental"](source, num_tasks=3)


def places(subset):
  """Returns the (split, row) of every image."""
  return [(id(p.split), int(row)) for p in subset.pieces for row in p.rows]


def test_nothing_kept_changes_nothing(scenario):
  assert rehearsal.Rehearsal().extend(scenario, 0) is scenario


def test_buffer_grows_by_the_same_number_of_each_class(scenario):
  kept = rehearsal.Rehearsal(per_class=3).extend(scenario, 0)
  for stage, old in zip(kept.stages, [(), (0, 1), (0, 1, 2, 3)], strict=True):
    labels = stage.train["buffer"].labels.tolist()
    assert sorted(labels) == sorted(3 * stage.classes["seen"])
    assert set(places(stage.train["buffer"])) <= set(
      places(stage.train["seen"])
    )
    if old:
      assert sorted(stage.train["replay"].labels.tolist()) == sorted(3 * old)
    else:
      assert "replay" not in stage.train


def test_current_exemplars_join_where_asked(scenario):
  kept = rehearsal.Rehearsal(per_class=3, include_current=True)
  for stage in kept.extend(scenario, 0).stages:
    assert places(stage.train["replay"]) == places(stage.train["buffer"])


def test_draw_depends_on_the_seed_alone(scenario):
  def draw(seed):
    kept = rehearsal.Rehearsal(per_class=3).extend(scenario, seed)
    return places(kept.stages[-1].train["buffer"]), kept.description

  (first, said), (again, said_again) = draw(0), draw(0)
  assert first == again
  assert said == said_again
  other, said_otherwise = draw(1)
  assert set(other) != set(first)
  assert said["exemplars"]["images"] == 3 * CLASSES
  assert said["exemplars"] != said_otherwise["exemplars"]


def test_classes_that_come_again_are_kept_once(scenario):
  twice = dataclasses.replace(
    scenario, stages=(scenario.stages[0], scenario.stages[0])
  )
  kept = rehearsal.Rehearsal(per_class=3).extend(twice, 0)
  found = places(kept.stages[-1].train["buffer"])
  assert len(found) == len(set(found)) == 6


def reference(method):
  """Returns a reference point that learns, and so has something to forget."""
  config = digits_reference.get_config(f"smoke,method={method}")
  config.model.depth = 1
  config.epochs = 2
  for group in ("head", "backbone"):
    if config.optimizer[group]:
      config.optimizer[group].lr = 0.02
  return config


def memory_of(stages, *, masked=True):
  memory = rehearsal.initial_memory(CLASSES)
  for stage in stages:
    memory = rehearsal.stage_memory(memory, stage, masked=masked)
  return memory


def batch_of(labels, value):
  labels = jnp.asarray(labels, jnp.int32)
  return {"label": labels, "image": jnp.full((len(labels), 1), float(value))}


@pytest.mark.parametrize(
  ("mask", "old"),
  [("seen", {0, 1, 2, 3}), ("old", {0, 1}), ("none", {0, 1, 2, 3, 4, 5})],
)
def test_rows_see_the_classes_of_their_kind(scenario, mask, old):
  memory = memory_of(scenario.stages[:2])
  batch = {"train": batch_of([2, 3], 7), "replay": batch_of([1, 0], 8)}
  rows = rehearsal.join(batch, memory, mask)
  assert rows.batch["label"].tolist() == [2, 1, 3, 0]
  assert rows.batch["image"][:, 0].tolist() == [7, 8, 7, 8]
  assert rows.task.tolist() == [1, 0, 1, 0]
  assert rows.streams == 2
  seen = [set(np.flatnonzero(row).tolist()) for row in rows.allowed]
  assert seen == [{2, 3}, old, {2, 3}, old]


def test_review_has_rows_of_the_buffer_alone(scenario):
  memory = memory_of(scenario.stages)
  rows = rehearsal.join({"replay": batch_of([5, 0, 2], 1)}, memory, "none")
  assert rows.task.tolist() == [2, 0, 1]
  assert rows.streams == 1
  assert rows.allowed.all()


def test_soft_labels_belong_to_the_task_of_their_largest_entry(scenario):
  memory = memory_of(scenario.stages)
  label = jnp.array([[0.1, 0.2, 0.7, 0, 0, 0]])
  rows = rehearsal.join(
    {"replay": {"label": label, "image": label}}, memory, "seen"
  )
  assert rows.task.tolist() == [1]


@pytest.mark.parametrize("name", ["l2p", "finetune"])
def test_an_exemplar_trains_its_column_and_a_new_image_no_old_one(
  scenario, name
):
  config = tiny() if name == "l2p" else reference("masked_head")
  method = main.build_method(config, CLASSES, 3)
  params, _ = weights.first(config, method.model)
  params = method.init_params(params, jax.random.key(0))
  memory = method.init_memory(params, jax.tree.map(lambda _: False, params))
  for stage in scenario.stages[:2]:
    memory = rehearsal.stage_memory(memory, stage, masked=True)
  image = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3))

  def column_gradients(labels):
    batch = {"train": {"image": image, "label": jnp.array([2, 3, 2, 3])}}
    if labels:
      batch["replay"] = {"image": 1 - image, "label": jnp.array(labels)}
    gradient = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
    (loss, _), grads = gradient(params, memory, batch, jax.random.key(2))
    assert np.isfinite(loss)
    return np.abs(grads["head"]["bias"])

  alone = column_gradients(None)
  assert (alone[[0, 1, 4, 5]] == 0).all()
  joined = column_gradients([0, 0, 0, 0])
  assert (joined[[0, 1]] > 0).all()
  assert (joined[[4, 5]] == 0).all()


def rehearsed(preset, config):
  config.rehearsal.update(common.REHEARSAL[preset])
  if config.rehearsal.per_class:
    config.rehearsal.per_class = 8
  return config


@pytest.fixture(scope="module")
def record(tmp_path_factory):
  """Returns each preset's run, made on first use."""
  records = {}

  def run(preset):
    if preset not in records:
      config = rehearsed(preset, reference("finetune"))
      records[preset] = main.execute(config, tmp_path_factory.mktemp(preset))
    return records[preset]

  return run


# 32 images a stage in batches of 8, twice; 16, 32 and 48 exemplars, 5 times.
OWN, REVIEWS = 8, (10, 20, 30)
ROUNDS = {
  "none": [("train", OWN)] * 3,
  "replay": [("train", OWN), *[("train_replay", OWN)] * 2],
  "replay_no_mask": [("train_replay", OWN)] * 3,
  "replay_reverse_mask": [("train", OWN), *[("train_replay", OWN)] * 2],
  "review_trick": [x for n in REVIEWS for x in (("train", OWN), ("review", n))],
  "review_last_only": [*[("train", OWN)] * 3, ("review", REVIEWS[-1])],
  "no_train": [("review", n) for n in REVIEWS],
}


@pytest.mark.parametrize("preset", common.REHEARSAL)
def test_presets_train_what_their_flags_say(preset):
  config = rehearsed(preset, tiny())
  _, scenario = main.build_scenario(config)
  method = main.build_method(config, CLASSES, 3)
  found = []
  for stage in scenario.stages:
    data = types.SimpleNamespace(
      steps_per_epoch=lambda roles, train=stage.train: sum(
        len(train[role]) // 8 for role in roles
      )
    )
    rounds = method.rounds(stage, data)
    found += [(round_.name, round_.steps) for round_ in rounds]
  assert found == ROUNDS[preset]


@pytest.mark.parametrize("preset", ["replay", "review_trick", "no_train"])
def test_each_kind_of_step_is_compiled_once(record, preset):
  counts = record(preset)["compiled_steps"]
  trained = {k: n for k, n in counts.items() if k.startswith("train/")}
  assert trained == {f"train/{name}": 1 for name, _ in ROUNDS[preset]}
  assert record(preset)["train_steps"] == sum(n for _, n in ROUNDS[preset])


@pytest.mark.parametrize("preset", ["replay", "review_trick", "no_train"])
def test_exemplars_keep_what_was_learned(record, preset):
  plain, kept = record("none")["final"], record(preset)["final"]
  assert kept["forgetting"] < plain["forgetting"] - 0.1
  assert kept["avg_acc"] > plain["avg_acc"] + 0.1


def test_stopped_in_a_review_goes_on_bit_for_bit(tmp_path):
  def run(name, stop=lambda: False):
    # Two tasks of 6 steps, then 15 and 30 of review.
    config = tiny(epochs=1, scenario__num_tasks=2)
    config = rehearsed("review_trick", config)
    main.execute(config, tmp_path / name, stop)
    record = json.loads((tmp_path / name / "results.json").read_text())
    return {k: v for k, v in record.items() if "second" not in k}

  whole = run("whole")
  asked = iter(range(100))
  with pytest.raises(Interrupted):
    run("stopped", lambda: next(asked) == 6 + 4)  # in the first review
  assert run("stopped") == whole


def test_another_draw_is_noticed(tmp_path, monkeypatch):
  asked = iter(range(100))
  with pytest.raises(Interrupted):
    main.execute(
      rehearsed("replay", tiny()), tmp_path, lambda: next(asked) == 4
    )
  extend = rehearsal.Rehearsal.extend
  monkeypatch.setattr(
    rehearsal.Rehearsal, "extend", lambda self, s, seed: extend(self, s, 99)
  )
  with pytest.raises(ValueError, match="not those with which this run started"):
    main.execute(rehearsed("replay", tiny()), tmp_path)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"mask": "new"}, "rehearsal.mask='new' must be one of seen, old, none"),
    ({"per_class": -1}, "per_class=-1 must be 0 or more"),
    ({"review_epochs": 2}, "review_epochs=2 needs a buffer"),
    ({"per_class": 4, "replay": False}, "per_class=4 would have no effect"),
    (
      {"per_class": 4, "review_last_only": True},
      "review_last_only=True would have no effect",
    ),
    ({"per_class": 4, "train": False}, "set rehearsal.review_epochs"),
    (
      {"per_class": 4, "mask": "old", "include_current": True},
      "hides the stage's own classes",
    ),
  ],
)
def test_settings_that_do_not_fit(options, message):
  with pytest.raises(ValueError, match=message):
    rehearsal.Rehearsal(**options)


def test_classes_that_come_again_cannot_be_hidden(scenario):
  twice = dataclasses.replace(
    scenario, stages=(scenario.stages[0], scenario.stages[0])
  )
  with pytest.raises(ValueError, match=r"hides the classes \[0, 1\]"):
    rehearsal.Rehearsal(per_class=3, mask="old").extend(twice, 0)


def test_without_training_the_buffer_makes_an_epoch(scenario):
  config = rehearsed("no_train", tiny())
  method = main.build_method(config, CLASSES, 3)
  assert method.roles(scenario.stages[0]) == ("buffer",)


def test_joint_training_cannot_be_masked():
  config = reference("joint")
  config.method.mask_classes = True
  with pytest.raises(ValueError, match="method.mask_classes=False"):
    main.build_method(config, CLASSES, 3)


def test_more_exemplars_than_images(scenario):
  with pytest.raises(ValueError, match="16 images, fewer than the 20 asked"):
    rehearsal.Rehearsal(per_class=20).extend(scenario, 0)


def test_method_without_a_use_for_exemplars(tmp_path):
  config = reference("nearest_mean")
  config.rehearsal.per_class = 2
  with pytest.raises(ValueError, match="NearestMean takes no exemplars"):
    main.execute(config, tmp_path)


def test_unknown_preset():
  with pytest.raises(ValueError, match="rehearsal='replai' must be one of"):
    common.rehearse(tiny(), "replai")
