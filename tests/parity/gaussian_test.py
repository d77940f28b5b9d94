"""The Gaussian schedule against the reference's figures and draws."""

import json
import re

import figures
import jax
import numpy as np
import pytest

from libml import datasets
from libml import scenarios
from libml.scenarios import task_free

FIGURES = {"l2p/gaussian_schedule": {}}
READINGS = figures.cases(*FIGURES, r"out/([^/]+)/positions")
DRAWS = figures.cases(*FIGURES, r"out/([^/]+)/sampled_([^_]+)_threefry")


@pytest.fixture(scope="module")
def case(golden):
  return golden("l2p", "gaussian_schedule")


def settings(case, reading):
  return json.loads(str(case["in/config"]))[reading]


def schedule(case, reading):
  config = settings(case, reading)
  return task_free.probability(
    config["num_tasks"],
    config["num_classes"],
    steps=config["step_per_task"],
    width=config["width"],
  )


def seed(config):
  """Returns the seed of a config's key, and whether the key is split."""
  said = config["key"]
  number = re.search(r"PRNGKey\((\d+)\)", said)[1]
  assert re.fullmatch(r"(second half of split\()?PRNGKey\(\d+\)\)?", said)
  return int(number), "split" in said


@pytest.mark.parametrize("reading", READINGS)
def test_positions_peaks_and_probabilities(case, reading):
  positions, peaks, likely = schedule(case, reading)
  at = f"out/{reading}/"
  np.testing.assert_array_equal(positions, case[f"{at}positions"])
  np.testing.assert_array_equal(peaks, case[f"{at}peaks"])
  np.testing.assert_allclose(
    likely, case[f"{at}probability"], rtol=0, atol=1e-6
  )
  sums = {
    "expected_classes": likely.sum(axis=1),
    "expected_episodes_per_class": likely.sum(axis=0),
  }
  for name, found in sums.items():
    np.testing.assert_allclose(found, case[at + name], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("reading", "mode"), DRAWS)
def test_draws_are_those_of_the_reference(case, reading, mode):
  *_, likely = schedule(case, reading)
  legacy = {"legacy": True, "new": False}[mode]
  number, split = seed(settings(case, reading))
  key = jax.random.PRNGKey(number)
  if split:
    key = task_free.schedule_key(number, legacy_threefry=legacy)
  drawn = task_free.draw_classes(likely, key, legacy_threefry=legacy)
  wanted = case[f"out/{reading}/sampled_{mode}_threefry"]
  np.testing.assert_array_equal(drawn, wanted)


def source(num_classes, images):
  """Returns so many training images of each class, in one pixel each."""
  labels = np.repeat(np.arange(num_classes, dtype=np.int32), images)
  split = datasets.Split(np.zeros((len(labels), 1, 1, 1), np.uint8), labels)
  names = tuple(map(str, range(num_classes)))
  return datasets.Source("tiny", names, {"train": split, "test": split}, "")


def scenario(config, images, number=0):
  length = config["step_per_task"]
  return scenarios.gaussian(
    source(config["num_classes"], images),
    num_stages=config["num_tasks"],
    steps_per_stage=None if length < 0 else length,
    width=config["width"],
    schedule_seed=number,
    legacy_threefry=True,
  )


# What the released code runs: a length of -1 a stage, whose classes' images
# make an epoch.
WHOLE = [name for name in READINGS if name == "shipped"]
STREAMS = [name for name in READINGS if name not in WHOLE]


@pytest.mark.parametrize("reading", WHOLE)
def test_shipped_stages_have_the_reference_images_and_steps(case, reading):
  config, at = settings(case, reading), f"out/{reading}/"
  number, split = seed(config)
  assert split and config["n_batches"] == config["step_per_task"] == -1
  drawn = case[f"{at}sampled_legacy_threefry"]
  wanted = case[f"{at}train_examples_legacy"]
  per_class = int(wanted[0]) // int(drawn[0].sum())
  found = scenario(config, per_class, number)
  images = [len(stage.train["learn"]) for stage in found.stages]
  np.testing.assert_array_equal(images, wanted)
  size, epochs = config["global_batch"], config["epochs"]
  steps = [epochs * (count // size) for count in images]
  np.testing.assert_array_equal(steps, case[f"{at}train_steps_legacy"])
  for stage, row in zip(found.stages, drawn, strict=True):
    assert stage.classes["learn"] == tuple(np.flatnonzero(row))


@pytest.mark.parametrize("reading", STREAMS)
def test_stream_stages_have_the_reference_steps(case, reading):
  config, at = settings(case, reading), f"out/{reading}/"
  assert config["n_batches"] == config["step_per_task"]
  found = scenario(config, images=1)
  steps = np.array([stage.epoch_steps["learn"] for stage in found.stages])
  np.testing.assert_array_equal(
    steps * config["global_batch"], case[f"{at}train_examples_legacy"]
  )
  np.testing.assert_array_equal(
    steps * config["epochs"], case[f"{at}train_steps_legacy"]
  )
  counts = [len(stage.classes["learn"]) for stage in found.stages]
  assert counts == found.description["classes_per_stage"]
