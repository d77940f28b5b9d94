"""Runs go on bit for bit, wherever in a stage they were stopped or killed."""

import dataclasses
import json
from collections.abc import Callable

import gs_toy
import lora_toy
import numpy as np
import pytest
import swap_tiny
import toy
import walks

from configs import digits_baselines
from libml import trees


class Killed(Exception):
  """Ends a run that saves nothing more."""


class Killer(walks.Stopper):
  """Kills a run where a Stopper stops it."""

  def should_stop(self):
    if super().should_stop():
      raise Killed
    return False


def scrub_s():
  """Returns a run of two requests of two epochs."""
  return toy.change(
    digits_baselines.get_config("smoke,method=scrub_s"),
    {
      "batch_size": 4,
      "export": False,
      "model__depth": 1,
      "scenario__num_requests": 2,
      "checkpoint__every_steps": 1000,
    },
  )


# Steps of the passes of a SCRUB-S epoch, by request: max, min, min.
PASSES = [(2, 10, 10), (2, 8, 8)]
FIRST, SECOND = (2 * sum(steps) for steps in PASSES)


def gs_lora_plus():
  """Returns a run of two requests of four epochs."""
  return gs_toy.tiny(
    "gs_lora_plus",
    scenario__num_requests=2,
    method__beta=(0.2, 0.3),
    method__proto_forget=(0.01, 0.01),
    method__proto_retain=(0.0, 0.0),
    method__average_epoch=1,
  )


@dataclasses.dataclass(frozen=True)
class Case:
  """A run, and where it ends early.

  Attributes:
    config: Makes its config.
    ends: (Stopper or Killer, part of a stage, stage, batch, steps done then).
    kept: Names that checkpoints and edits must hold.
    frozen: Names that checkpoints must not hold.
  """

  config: Callable
  ends: tuple
  kept: frozenset
  frozen: frozenset


STOP, KILL = walks.Stopper, Killer
MLP = "Transformer/encoderblock_1/MlpBlock_0/Dense_0"
ATTENTION = "Transformer/encoderblock_1/MultiHeadDotProductAttention_0"
CASES = {
  "scrub_s": Case(
    scrub_s,
    (
      (STOP, "train", 0, 22, 22),  # end of an epoch, before the average
      (STOP, "tabulate", 1, 3, FIRST),  # in the teacher's predictions
      (STOP, "train", 1, 5, FIRST + 5),  # in a pass of min steps
    ),
    frozenset({"params/cls", "memory/averaged"}),
    frozenset({"params/head/kernel"}),
  ),
  # Two requests of 20 and 16 steps; alpha starts after half of them.
  "gs_lora_plus": Case(
    gs_lora_plus,
    (
      (STOP, "measure", -1, 3, 0),
      (STOP, "train", 0, 13, 13),
      (STOP, "class_sums", 1, 2, 20),
      (STOP, "measure", 1, 4, 36),
    ),
    frozenset(
      {
        f"params/{MLP}/kernel",
        f"params/{MLP}/lora_b",
        f"memory/average/{MLP}/kernel",
        "memory/prototypes",
        "memory/alpha",
        f"edits/stage_1/{MLP}/lora_a",
        "edits/stage_0/zero/Transformer/encoderblock_0",
        "edits/stage_0/classes",
      }
    ),
    frozenset({"params/head/kernel", "params/cls", f"params/{MLP}/bias"}),
  ),
  # Two tasks of 10 steps, with two passes of 6 batches over their images.
  "lora_sub": Case(
    lambda: lora_toy.tiny(scenario__num_tasks=2),
    (
      (STOP, "second_moments", 1, 2, 10),
      (KILL, "second_moments", 1, 3, 10),
      (STOP, "train", 1, 4, 14),
      (STOP, "class_sums", 1, 2, 20),
    ),
    frozenset(
      {
        f"params/{ATTENTION}/key/kernel",
        f"params/{ATTENTION}/value/lora_a",
        "params/head/kernel",
        f"memory/sums/{ATTENTION}/value/kernel",
        "memory/projectors/encoderblock_0",
        "memory/prototypes",
      }
    ),
    frozenset({f"params/{ATTENTION}/query/kernel", "params/cls"}),
  ),
  # Stages forget and learn in 4 steps each; each third saves.
  "swapping": Case(
    lambda: swap_tiny.tiny("order=fl", checkpoint__every_steps=3),
    (
      (STOP, "measure", 0, 2, 4),
      (KILL, "train", 1, 1, 4),
      (KILL, "train", 1, 3, 6),
    ),
    frozenset({f"params/{MLP}/lora_b", f"memory/start/{MLP}/lora_a"}),
    frozenset({f"params/{MLP}/kernel", "params/head/kernel", "params/cls"}),
  ),
}


def ends(seen, workdir):
  """Returns a finished run's figures, and all that it may change."""
  leaves = dict(seen.run.changing(seen.state))
  del leaves["rng"]
  leaves = {name: np.array(leaf) for name, leaf in leaves.items()}
  for path in (workdir / "edits").glob("*.npz"):
    with np.load(path) as edit:
      names = {f"edits/{path.stem}/{name}": name for name in edit.files}
      leaves |= {ours: edit[name] for ours, name in names.items()}
  record = json.loads((workdir / "results.json").read_text())
  keys = ("matrix", "test_sets", "summary", "reports", "train_steps")
  return {key: record.get(key) for key in keys}, leaves


@pytest.fixture(scope="module", params=CASES)
def whole(request, tmp_path_factory):
  """Returns a case, its uninterrupted run, and what that leaves."""
  case, workdir = CASES[request.param], tmp_path_factory.mktemp("whole")
  seen = walks.stop_in(case.config(), workdir)
  return case, seen, *ends(seen, workdir)


def test_stopped_or_killed_anywhere_it_ends_bit_for_bit(tmp_path, whole):
  case, first, *wanted = whole
  done = 0
  for kind, *at, steps in case.ends:
    ender = kind(*at)
    try:
      walks.watch(case.config(), tmp_path, ender.should_stop, ender)
      assert ender.stopped == f"after step {steps}", at
      assert len(ender.metrics) == steps - done, "no step is taken twice"
    except Killed:
      assert kind is Killer
    done = steps
  seen = walks.stop_in(case.config(), tmp_path)
  assert len(seen.metrics) == len(first.metrics) - done
  assert set(seen.record["compiled_steps"].values()) == {1}
  figures, leaves = ends(seen, tmp_path)
  assert figures == wanted[0]
  assert leaves.keys() == wanted[1].keys()
  for name, leaf in leaves.items():
    np.testing.assert_array_equal(leaf, wanted[1][name], err_msg=name)


def test_checkpoints_hold_what_may_change_and_no_more(whole):
  case, seen, _, leaves = whole
  assert case.kept <= leaves.keys()
  assert not case.frozen & leaves.keys()
  trainable = seen.run.optimizer.groups.trainable(seen.state.params)
  trained = [name for name, on in trees.flatten(trainable).items() if on]
  assert sum("/nu/" in name for name in leaves) == len(trained)


scrub = pytest.mark.parametrize("whole", ["scrub_s"], indirect=True)


@scrub
def test_passes_are_rounds_of_two_compiled_steps(whole):
  _, seen, *_ = whole
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


@scrub
def test_the_teacher_sees_each_image_once_a_request(whole):
  _, seen, *_ = whole
  asked = {at: n for at, n in seen.asked.items() if at[0] == "tabulate"}
  assert asked == {
    ("tabulate", number): forget + retain
    for number, (forget, retain, _) in enumerate(PASSES)
  }


@scrub
def test_the_average_moves_once_an_epoch(whole):
  _, seen, _, leaves = whole
  assert leaves["memory/averaged"] == 4
  name = "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel"
  average, weights = leaves[f"memory/average/{name}"], leaves[f"params/{name}"]
  first = seen.start[f"memory/average/{name}"]
  assert not np.array_equal(average, weights)
  assert not np.array_equal(average, first)
