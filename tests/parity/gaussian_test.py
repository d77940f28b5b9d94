"""The Gaussian schedule against the reference's figures and draws."""

import json

import jax
import numpy as np
import pytest

from libml import datasets
from libml import scenarios
from libml.scenarios import task_free

READINGS = {"shipped": -1, "stream": 5}
MODES = {"legacy": True, "new": False}


@pytest.fixture(scope="module")
def case(golden):
  return golden("l2p", "gaussian_schedule")


def schedule(case, reading):
  config = json.loads(str(case["in/config"]))[reading]
  assert config["step_per_task"] == READINGS[reading]
  return task_free.probability(
    config["num_tasks"],
    config["num_classes"],
    steps=config["step_per_task"],
    width=config["width"],
  )


@pytest.mark.parametrize("reading", READINGS)
def test_positions_peaks_and_probabilities(case, reading):
  positions, peaks, likely = schedule(case, reading)
  at = f"out/{reading}/"
  np.testing.assert_array_equal(positions, case[f"{at}positions"])
  np.testing.assert_array_equal(peaks, case[f"{at}peaks"])
  np.testing.assert_allclose(likely, case[f"{at}probability"], atol=1e-6)
  sums = {
    "expected_classes": likely.sum(axis=1),
    "expected_episodes_per_class": likely.sum(axis=0),
  }
  for name, found in sums.items():
    np.testing.assert_allclose(found, case[at + name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reading", READINGS)
def test_draws_are_those_of_the_reference(case, reading, mode):
  *_, likely = schedule(case, reading)
  legacy = MODES[mode]
  # Keys as in the case's config.
  key = {
    "shipped": task_free.schedule_key(42, legacy_threefry=legacy),
    "stream": jax.random.PRNGKey(0),
  }[reading]
  drawn = task_free.draw_classes(likely, key, legacy_threefry=legacy)
  wanted = case[f"out/{reading}/sampled_{mode}_threefry"]
  np.testing.assert_array_equal(drawn, wanted)


@pytest.fixture(scope="module")
def source():
  """Returns CIFAR-100's numbers of classes and images, in one pixel each."""
  labels = np.repeat(np.arange(100, dtype=np.int32), 500)
  images = np.zeros((len(labels), 1, 1, 1), np.uint8)
  split = datasets.Split(images, labels)
  names = tuple(map(str, range(100)))
  return datasets.Source("tiny", names, {"train": split, "test": split}, "")


def test_shipped_stages_have_the_reference_images_and_steps(case, source):
  scenario = scenarios.gaussian(
    source, steps_per_stage=None, schedule_seed=42, legacy_threefry=True
  )
  images = [len(stage.train["learn"]) for stage in scenario.stages]
  at = "out/shipped/"
  np.testing.assert_array_equal(images, case[f"{at}train_examples_legacy"])
  steps = [5 * (count // 128) for count in images]
  np.testing.assert_array_equal(steps, case[f"{at}train_steps_legacy"])
  assert sum(steps) == 196_420
  for stage, row in zip(
    scenario.stages, case[f"{at}sampled_legacy_threefry"], strict=True
  ):
    assert stage.classes["learn"] == tuple(np.flatnonzero(row))


def test_stream_stages_have_the_reference_steps(case, source):
  scenario = scenarios.gaussian(source, steps_per_stage=5)
  steps = [5 * stage.epoch_steps["learn"] for stage in scenario.stages]
  wanted = case["out/stream/train_steps_legacy"]
  np.testing.assert_array_equal(steps, wanted)
  counts = scenario.description["classes_per_stage"]
  assert (min(counts), max(counts), len(counts)) == (4, 19, 200)
