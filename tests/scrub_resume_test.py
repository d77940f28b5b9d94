"""SCRUB-S goes on where it stopped: in a pass, between two, with its teacher.

Two requests of two epochs: a pass of max steps, two of min steps, and then the
average moves.
"""

import json

import numpy as np
import pytest
import toy
from walks import stop_in

from configs import digits_baselines

# Steps of the passes of an epoch, by request.
PASSES = [(2, 10, 10), (2, 8, 8)]
FIRST, SECOND = (2 * sum(steps) for steps in PASSES)


def config():
  """Returns a run in which only stops save inside a request."""
  return toy.change(
    digits_baselines.get_config("smoke,method=scrub_s"),
    {
      "batch_size": 4,
      "checkpoint__every_steps": 1000,
      "export": False,
      "model__depth": 1,
      "scenario__num_requests": 2,
    },
  )


def ends(seen, workdir):
  """Returns figures, and all that may change."""
  leaves = seen.run.changing(seen.state)
  del leaves["rng"]
  record = json.loads((workdir / "results.json").read_text())
  keys = ("matrix", "test_sets", "summary", "train_steps", "compiled_steps")
  leaves = {name: np.array(leaf) for name, leaf in leaves.items()}
  return {key: record[key] for key in keys}, leaves


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Returns the uninterrupted run, and what it leaves."""
  workdir = tmp_path_factory.mktemp("whole")
  seen = stop_in(config(), workdir)
  return seen, *ends(seen, workdir)


# Where, in which request, at which batch, and the steps done until then.
STOPS = [
  ("train", 0, 1, 1),  # in a pass of max steps
  ("train", 0, 21, 22),  # at the end of an epoch, before the average
  ("tabulate", 1, 3, FIRST),
  ("train", 1, 5, FIRST + 5),  # in a pass of min steps
]


def test_stopped_anywhere_it_ends_bit_for_bit(tmp_path, whole):
  done = 0
  for *at, steps in STOPS:
    seen = stop_in(config(), tmp_path, *at)
    assert seen.stopped == f"after step {steps}", at
    assert len(seen.metrics) == steps - done, "no step is taken twice"
    done = steps
  seen = stop_in(config(), tmp_path)
  assert len(seen.metrics) == FIRST + SECOND - done
  figures, leaves = ends(seen, tmp_path)
  for made in (figures, whole[1]):
    # Each process compiles anew, and what it does not need not at all.
    assert set(made.pop("compiled_steps").values()) == {1}
  assert figures == whole[1]
  assert leaves.keys() == whole[2].keys()
  for name, leaf in leaves.items():
    np.testing.assert_array_equal(leaf, whole[2][name], err_msg=name)


def test_passes_are_rounds_of_two_compiled_steps(whole):
  seen = whole[0]
  made = seen.record["compiled_steps"]
  steps = {name for name in made if name.startswith("train/")}
  assert steps == {"train/max", "train/min"}
  assert set(made.values()) == {1}
  kinds = ["min" if "retain" in m else "max" for m in seen.metrics]
  wanted = []
  for forget, *retain in (PASSES[0], PASSES[0], PASSES[1], PASSES[1]):
    wanted += ["max"] * forget + ["min"] * sum(retain)
  assert kinds == wanted
  assert seen.record["train_steps"] == FIRST + SECOND


def test_the_teacher_sees_each_image_once_a_request(whole):
  asked = {at: n for at, n in whole[0].asked.items() if at[0] == "tabulate"}
  assert asked == {
    ("tabulate", number): forget + retain
    for number, (forget, retain, _) in enumerate(PASSES)
  }


def test_the_average_moves_once_an_epoch(whole):
  leaves = whole[2]
  assert leaves["memory/averaged"] == 4
  name = "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel"
  average, weights = leaves[f"memory/average/{name}"], leaves[f"params/{name}"]
  first = whole[0].start[f"memory/average/{name}"]
  assert not np.array_equal(average, weights)
  assert not np.array_equal(average, first)
