"""GS-LoRA++ goes on where it stopped: measuring, in a request or a pass."""

import json

import numpy as np
import pytest
from gs_toy import tiny
from walks import stop_in
from walks import watch


def config(**changes):
  return tiny("gs_lora_plus", method__average_epoch=1, **changes)


def go(workdir):
  """Runs to the end; returns figures, edits, and all that may change."""
  # So rarely that only the stops themselves save inside a request.
  seen = watch(config(checkpoint__every_steps=1000), workdir)
  leaves = seen.run.changing(seen.state)
  del leaves["rng"]
  leaves = {name: np.array(leaf) for name, leaf in leaves.items()}
  for number in range(3):
    with np.load(workdir / "edits" / f"stage_{number}.npz") as edit:
      leaves |= {f"{number}/{name}": leaf for name, leaf in edit.items()}
  record = json.loads((workdir / "results.json").read_text())
  keys = ("matrix", "test_sets", "summary", "reports", "train_steps")
  return {key: record[key] for key in keys}, leaves


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Returns what the uninterrupted run leaves."""
  return go(tmp_path_factory.mktemp("whole"))


# Where, in which request, and the steps done until then. Requests have 20, 16
# and 12 steps, alpha comes on after half of them, 10 batches are measured.
STOPS = [
  ("measure", -1, 3, 0),
  ("train", 0, 7, 7),
  ("train", 0, 6, 13),
  ("measure", 0, 10, 20),
  ("class_sums", 1, 2, 20),
  ("train", 1, 8, 28),
  ("measure", 1, 4, 36),
]


def test_stopped_anywhere_it_ends_bit_for_bit(tmp_path, whole):
  done = 0
  for place, stage, batch, steps in STOPS:
    rare = config(checkpoint__every_steps=1000)
    seen = stop_in(rare, tmp_path, place, stage, batch)
    assert seen.stopped == f"after step {steps}", (place, stage)
    assert len(seen.metrics) == steps - done, "no step is taken twice"
    done = steps
  figures, leaves = go(tmp_path)
  assert figures == whole[0]
  assert leaves.keys() == whole[1].keys()
  for name, leaf in leaves.items():
    np.testing.assert_array_equal(leaf, whole[1][name], err_msg=name)


def test_what_must_be_kept_is_kept(whole):
  _, leaves = whole
  mlp = "Transformer/encoderblock_1/MlpBlock_0/Dense_0"
  expected = {
    f"params/{mlp}/kernel",
    f"params/{mlp}/lora_b",
    f"memory/average/{mlp}/kernel",
    "memory/prototypes",
    "memory/alpha",
    f"2/{mlp}/lora_a",
    "0/zero/Transformer/encoderblock_0",
    "0/classes",
  }
  assert expected <= leaves.keys()
  frozen = {"params/head/kernel", "params/cls", f"params/{mlp}/bias"}
  assert not frozen & leaves.keys()
