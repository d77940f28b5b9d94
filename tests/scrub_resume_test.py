"""SCRUB-S goes on where it stopped: in a pass, between two, with its teacher.

Two requests of two epochs: a pass of max steps, two of min steps, and then the
average moves.
"""

import collections
import json

import numpy as np
import pytest
import toy
from walks import watch

from configs import digits_baselines
from libml.pipeline import stage_data
from libml.train import run as run_lib

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


class Stopper:
  """Asks for a stop at a batch of a pass over images, or of training.

  Attributes:
    at: (place, request, batch).
    asked: (place, request) -> how often it was asked there.
  """

  def __init__(self, patch, at=(None, None, None)):
    self.at, self.asked, self._inside = at, collections.Counter(), []
    self._watch(patch, stage_data.StageData, "tabulate", lambda d, *_: d.stage)
    self._watch(patch, run_lib.Run, "_train_round", lambda _, s, x, *r: x.index)

  def _watch(self, patch, cls, name, stage):
    method = getattr(cls, name)

    def call(*given):
      self._inside.append((name, stage(*given)))
      try:
        return method(*given)
      finally:
        self._inside.pop()

    patch.setattr(cls, name, call)

  def __call__(self):
    if not self._inside:
      return False
    self.asked[self._inside[-1]] += 1
    place, number, batch = self.at
    here = (place, number)
    return here == self._inside[-1] and self.asked[here] == batch


def go(workdir, *at):
  """Runs on, until a stop; returns what there was to see."""
  with pytest.MonkeyPatch.context() as patch:
    stopper = Stopper(patch, *at)
    seen = watch(config(), workdir, stopper)
  seen.asked = stopper.asked
  return seen


def ends(seen, workdir):
  """Returns figures, and all that may change."""
  leaves = seen.run.changing(seen.state)
  del leaves["rng"]
  record = json.loads((workdir / "results.json").read_text())
  keys = ("matrix", "probes", "summary", "train_steps", "compiled_steps")
  leaves = {name: np.array(leaf) for name, leaf in leaves.items()}
  return {key: record[key] for key in keys}, leaves


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Returns the uninterrupted run, and what it leaves."""
  workdir = tmp_path_factory.mktemp("whole")
  seen = go(workdir)
  return seen, *ends(seen, workdir)


# Where, in which request, at which batch, and the steps done until then.
STOPS = [
  ("_train_round", 0, 1, 1),  # in a pass of max steps
  ("_train_round", 0, 21, 22),  # at the end of an epoch, before the average
  ("tabulate", 1, 3, FIRST),
  ("_train_round", 1, 5, FIRST + 5),  # in a pass of min steps
]


def test_stopped_anywhere_it_ends_bit_for_bit(tmp_path, whole):
  done = 0
  for *at, steps in STOPS:
    seen = go(tmp_path, at)
    assert seen.stopped == f"after step {steps}", at
    assert len(seen.metrics) == steps - done, "no step is taken twice"
    done = steps
  seen = go(tmp_path)
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
