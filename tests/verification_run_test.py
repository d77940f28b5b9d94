"""Verification at the end of a run, from a list of pairs to its curve."""

import json
import logging

import jax
import numpy as np
import pytest
from PIL import Image
from walks import untrained

import main
from configs import casia100_gs_lora
from configs import casia100_pretrain
from configs import common
from libml.datasets import pairs
from libml.problems import verification
from libml.train.method import Method
from libml.train.walk import Interrupted
from models import export

PEOPLE, EACH = 5, 4  # 20 images: batches of 8 need padding


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
  """Returns a folder of made-up faces, and of pairs.txt."""
  folder = tmp_path_factory.mktemp("faces")
  rng = np.random.default_rng(0)
  names = []
  for person in range(PEOPLE):
    face = rng.integers(0, 256, (8, 8, 3))
    for number in range(EACH):
      pixels = np.clip(face + rng.normal(0, 40, face.shape), 0, 255)
      names.append(f"{person}_{number}.png")
      Image.fromarray(pixels.astype(np.uint8)).save(folder / names[-1])
  lines = []
  for i, name in enumerate(names):
    for other in names[i + 1 :]:
      lines.append(f"{name} {other} {int(name[0] == other[0])}")
  order = rng.permutation(len(lines))
  (folder / "pairs.txt").write_text("\n".join(lines[i] for i in order))
  return folder


def config(faces, **verified):
  """Returns the smoke run of a margin head, with pairs."""
  made = casia100_pretrain.get_config("smoke")
  made.model.depth = 1
  given = {"pairs": str(faces / "pairs.txt"), "root": str(faces), **verified}
  made.verification.update(given)
  return made


@pytest.fixture(scope="module")
def run(faces, tmp_path_factory):
  """Returns a run's workdir, its log, and what predict was given."""
  workdir = tmp_path_factory.mktemp("run")
  inputs, lines, predict = [], [], Method.predict
  calls = []

  def watched(method, params, memory, batch):
    inputs.append("label" in batch)
    return predict(method, params, memory, batch)

  handler = logging.Handler()
  handler.emit = lambda record: lines.append(record.getMessage())
  log = logging.getLogger("palimpsest")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Method, "predict", watched)
    patch.setattr(log, "handlers", [handler])
    level = log.level
    log.setLevel(logging.INFO)  # unlike the attribute, it forgets its answers
    main.execute(config(faces), workdir, lambda: bool(calls.append(1)))
    log.setLevel(level)
  return workdir, lines, inputs, len(calls)


def read(workdir):
  record = json.loads((workdir / "results.json").read_text())
  for name in ("wall_seconds", "examples_per_second", "stage_seconds"):
    del record[name]
  return record


def test_figures_are_those_of_the_exported_weights(run, faces):
  workdir, *_ = run
  listed = pairs.read(faces / "pairs.txt", faces)
  pixels = np.stack([np.asarray(Image.open(p)) for p in listed.images])
  model, params = export.read(workdir / "export")
  images = {"image": np.float32(pixels) / 255}
  outputs = jax.jit(model.apply)({"params": params}, images)
  similarity = verification.similarities(
    outputs["features"], listed.first, listed.second
  )
  expected = verification.pair_metrics(similarity, listed.same)
  found = read(workdir)["test_sets"][-1]["verification"]
  assert set(found) == {""}, "the margin does not touch the features"
  curve = found[""].pop("roc")
  assert found[""] == pytest.approx(expected, abs=1e-6)
  assert found[""]["count"] == 190
  points = np.array(curve["true_accept_rate"])
  assert len(points) == 41 and points[-1] == 1.0
  assert (np.diff(points) >= 0).all()
  assert points[30] == found[""]["tar_at_far_0.1"]


def test_it_stands_beside_matrix_and_summaries(run):
  record = read(run[0])
  assert record["axes"]["test_set"] == ["task_0"]
  accuracy = record["test_sets"][-1]["task_0"][""]["accuracy"]
  assert record["matrix"]["accuracy"] == [[accuracy]]
  assert record["final"]["avg_acc"] == accuracy
  assert record["compiled_steps"]["evaluate/verification"] == 1
  assert record["compiled_steps"]["evaluate"] == 1
  assert record["scenario"]["verification"]["images"]["examples"] == 20


def test_numbers_of_images_are_no_labels_to_the_model(run):
  _, _, inputs, _ = run
  assert set(inputs) == {True, False}


def test_people_see_it(run):
  from tensorboard.backend.event_processing import event_accumulator

  workdir, lines, *_ = run
  found = read(workdir)["test_sets"][-1]["verification"][""]
  line = f"stage 1/1, verification: accuracy {found['accuracy']:.4g}, "
  assert any(x.startswith(line) and "auc " in x for x in lines)
  events = event_accumulator.EventAccumulator(str(workdir), size_guidance={})
  tags = set(events.Reload().Tags()["tensors"])
  names = ("accuracy", "accuracy_std", "auc", "tar_at_far_0.001", "roc")
  assert tags >= {f"{name}_verification" for name in names}
  assert "count_verification" not in tags


def test_stop_while_pairs_are_measured(run, faces, tmp_path):
  whole, *_, calls = run
  asked = iter(range(1, calls + 1))
  with pytest.raises(Interrupted):
    main.execute(config(faces), tmp_path, lambda: next(asked) == calls)
  lines = (faces / "pairs.txt").read_text()
  (faces / "pairs.txt").write_text("\n".join(reversed(lines.splitlines())))
  with pytest.raises(ValueError, match="images are not those with which"):
    main.execute(config(faces), tmp_path)
  (faces / "pairs.txt").write_text(lines)
  main.execute(config(faces), tmp_path)
  assert read(tmp_path) == read(whole)


def test_forgetting_is_measured_before_and_after(faces, tmp_path):
  made = casia100_gs_lora.get_config("smoke")
  made.verification.update(config(faces).verification.to_dict())
  made.model.depth = 1
  common.measure(made)
  main.execute(made, tmp_path)
  record = read(tmp_path)
  has = ["verification" in row for row in record["test_sets"]]
  assert has == [True, False, False, True]
  assert "verification" not in record["axes"]["test_set"]
  before, after = (record["test_sets"][i]["verification"] for i in (0, -1))
  assert before == after and before[""]["count"] == 190


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"root": None}, "verification.root=None: give verification.root, the"),
    ({"pairs": None}, "verification.pairs=None .* give verification.pairs,"),
    ({"pairs": "none.txt"}, "No list of pairs none.txt"),
    ({"root": "/"}, "20 images of .*pairs.txt are not in /"),
    ({"folds": 191}, "lists 190 pairs for 191 folds"),
    ({"folds": 1}, "take at least 2 folds"),
  ],
)
def test_bad_pairs_stop_a_run_at_once(faces, tmp_path, changes, message):
  with pytest.raises((ValueError, OSError), match=message):
    untrained(config(faces, **changes), tmp_path)


@pytest.mark.parametrize(
  ("image", "message"),
  [(None, "Cannot decode .*a.png"), ((9, 8), r"9.*8")],
)
def test_bad_images_stop_a_run_before_the_first_step(tmp_path, image, message):
  for name in ("a.png", "b.png"):
    if image:
      Image.fromarray(np.zeros((*image, 3), np.uint8)).save(tmp_path / name)
    else:
      (tmp_path / name).write_text("text")
  (tmp_path / "pairs.txt").write_text("a.png b.png 1\nb.png a.png 0\n")
  with pytest.raises(ValueError, match=message):
    untrained(config(tmp_path, folds=2), tmp_path / "run")


def test_arguments_name_the_pairs():
  made = casia100_pretrain.get_config("pairs=lfw.txt,root=lfw")
  assert (made.verification.pairs, made.verification.root) == ("lfw.txt", "lfw")
  assert casia100_pretrain.get_config("smoke").verification.pairs is None
