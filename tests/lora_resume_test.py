"""LoRA-Sub-DRS goes on where it stopped, in a task or in a pass over images."""

import json
import pathlib
import signal
import time

import children
import numpy as np
import pytest
from lora_toy import tiny
from walks import stop_in
from walks import watch

import main
from libml.train.observer import Observer

TOY = pathlib.Path(__file__).with_name("lora_toy.py")


def go(workdir, **changes):
  """Runs the tiny config; returns its figures and all that may change."""
  seen = watch(tiny(**changes), workdir)
  leaves = seen.run.changing(seen.state)
  del leaves["rng"]
  record = json.loads((workdir / "results.json").read_text())
  figures = {key: record[key] for key in ("matrix", "test_sets", "summary")}
  return figures, {name: np.array(leaf) for name, leaf in leaves.items()}


def assert_same(ours, theirs):
  """Compares what `go` returns, bit by bit."""
  assert ours[0] == theirs[0]
  assert ours[1].keys() == theirs[1].keys()
  for name, leaf in ours[1].items():
    np.testing.assert_array_equal(leaf, theirs[1][name], err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Returns figures and leaves of the uninterrupted run."""
  return go(tmp_path_factory.mktemp("whole"))


def test_checkpoints_hold_what_the_method_rewrites(whole):
  _, leaves = whole
  attention = "encoderblock_1/MultiHeadDotProductAttention_0"
  expected = {
    f"params/Transformer/{attention}/key/kernel",
    f"params/Transformer/{attention}/value/lora_a",
    "params/head/kernel",
    f"memory/sums/Transformer/{attention}/value/kernel",
    "memory/projectors/encoderblock_0",
    "memory/prototypes",
  }
  assert expected <= leaves.keys()
  frozen = {f"params/Transformer/{attention}/query/kernel", "params/cls"}
  assert not frozen & leaves.keys()
  moments = [n for n in leaves if "/nu/" in n and n.endswith("/lora_b")]
  assert len(moments) == 4


# Where (a pass has 4 batches, a task 6 steps), and the steps done until then.
STOPS = [
  ("second_moments", 1, 6),
  ("second_moments", 4, 6),
  ("train", 4, 10),
  ("class_sums", 2, 12),
  ("class_sums", 4, 12),
]


def test_stopped_in_passes_and_in_a_task_it_ends_bit_for_bit(tmp_path, whole):
  # So rarely that only the stops themselves save inside a task.
  rare = {"checkpoint__every_steps": 100}
  done = 0
  for place, batch, steps in STOPS:
    seen = stop_in(tiny(**rare), tmp_path, place, 1, batch)
    assert seen.stopped == f"after step {steps}"
    assert len(seen.metrics) == steps - done, "no step is taken twice"
    done = steps
  assert_same(go(tmp_path, **rare), whole)


class Held(Observer):
  """Waits in the second task's pass until the run is stopped."""

  def __init__(self, marker, should_stop):
    self._marker, self._should_stop = marker, should_stop

  def on_pass(self, stage, name, total):
    if name == "second_moments" and total is None:
      self._marker.touch()
      while not self._should_stop():
        time.sleep(0.05)


def hold(marker, *arguments):
  """Is main.py that waits in that pass."""
  execute = main.execute

  def held(config, workdir, should_stop, **options):
    observer = Held(marker, should_stop)
    return execute(config, workdir, should_stop, observer=observer, **options)

  main.execute = held
  children.command_line(*arguments)


def end(workdir, folder, number):
  """Ends a run in that pass by a signal; returns code and output."""
  marker = folder / f"marker_{number}"
  process = children.start(
    hold,
    marker,
    f"--my_config={TOY}",
    f"--workdir={workdir}",
    log=folder / f"log_{number}",
    devices=2,
  )
  until = time.monotonic() + children.SECONDS
  while not marker.exists() and process.is_alive():
    assert time.monotonic() < until, "the pass never began"
    time.sleep(0.02)
  if process.is_alive():
    {signal.SIGTERM: process.terminate, signal.SIGKILL: process.kill}[number]()
  (code,), (printed,) = children.finish(process)
  return code, printed


def test_terminated_and_killed_in_the_pass_it_ends_bit_for_bit(tmp_path, whole):
  workdir = tmp_path / "run"
  code, printed = end(workdir, tmp_path, signal.SIGTERM)
  assert code == 0, printed
  assert "the same command goes on after step 6." in printed
  code, printed = end(workdir, tmp_path, signal.SIGKILL)
  assert code == -signal.SIGKILL, printed
  assert "Resuming in stage 2, after step 6." in printed
  record = json.loads((workdir / "results.json").read_text())
  assert (record["stages_done"], record["finished"]) == (1, False)
  assert_same(go(workdir), whole)
