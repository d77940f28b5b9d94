"""A swap goes on where it stopped or fell: in a stage, and between two."""

import json

import numpy as np
import pytest
from swap_tiny import tiny
from walks import Watcher
from walks import stop_in
from walks import watch


class Fallen(Exception):
  """What a kill is to a run: nothing more is saved."""


def go(workdir):
  """Runs to the end; returns figures, and all that may change."""
  seen = watch(tiny("order=flf"), workdir)
  leaves = seen.run.changing(seen.state)
  del leaves["rng"]
  record = json.loads((workdir / "results.json").read_text())
  keys = ("matrix", "test_sets", "summary", "reports", "train_steps")
  return (
    {key: record[key] for key in keys},
    {name: np.array(leaf) for name, leaf in leaves.items()},
  )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Returns what the uninterrupted run leaves."""
  return go(tmp_path_factory.mktemp("whole"))


class Falls(Watcher):
  """Lets a run fall when it has taken a step."""

  def __init__(self, at):
    super().__init__()
    self._at = at

  def on_step(self, stage, step, metrics):
    if step == self._at:
      raise Fallen
    super().on_step(stage, step, metrics)


# The stages forget, learn and forget in 4, 4 and 12 steps, and a checkpoint is
# written after each third. Where a run stops, or the step in which it falls,
# and how many steps are then done for good.
ENDS = [
  (("train", 0, 2), 2),
  (("measure", 0, 2), 4),
  (5, 4),
  (("train", 1, 3), 7),
  (("measure", 1, 5), 8),
  (("train", 2, 5), 13),
  (17, 15),
]


def test_stopped_and_fallen_in_every_stage_it_ends_bit_for_bit(tmp_path, whole):
  done = 0
  for end, steps in ENDS:
    if isinstance(end, int):
      with pytest.raises(Fallen):
        watch(tiny("order=flf"), tmp_path, seen=Falls(end))
    else:
      seen = stop_in(tiny("order=flf"), tmp_path, *end)
      assert seen.stopped == f"after step {steps}", end
      assert len(seen.metrics) == steps - done, "no step is taken twice"
    done = steps
  figures, leaves = go(tmp_path)
  assert figures == whole[0]
  assert leaves.keys() == whole[1].keys()
  for name, leaf in leaves.items():
    np.testing.assert_array_equal(leaf, whole[1][name], err_msg=name)


def test_what_must_be_kept_is_kept(whole):
  figures, leaves = whole
  assert figures["train_steps"] == 20
  mlp = "Transformer/encoderblock_1/MlpBlock_0/Dense_0"
  expected = {f"params/{mlp}/lora_b", f"memory/start/{mlp}/lora_a"}
  assert expected <= leaves.keys()
  assert sum("/nu/" in name for name in leaves) == 8
  frozen = {f"params/{mlp}/kernel", "params/head/kernel", "params/cls"}
  assert not frozen & leaves.keys()
