"""LoRA-Sub-DRS goes on where it stopped, in a task or in a pass over images."""

import dataclasses
import json
import pathlib
import signal
import time

import children
import numpy as np
import pytest
from lora_toy import tiny
from walks import watch

from libml.pipeline import stage_data
from libml.train import run as run_lib

TOY = pathlib.Path(__file__).with_name("lora_toy.py")


def go(workdir, **changes):
  """Runs the tiny config; returns its figures and all that may change."""
  seen = watch(tiny(**changes), workdir)
  leaves = seen.run.changing(seen.state)
  del leaves["rng"]
  record = json.loads((workdir / "results.json").read_text())
  figures = {key: record[key] for key in ("matrix", "probes", "summary")}
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


def stop_in(monkeypatch, place, batch, stage=1):
  """Returns a should_stop: true at that batch of a pass, or of training."""
  inside, asked = [], []
  accumulate = stage_data.StageData.accumulate
  train = run_lib.Run._train_round

  def watched(self, name, *rest, **options):
    inside.append(name if self.stage == stage else None)
    try:
      return accumulate(self, name, *rest, **options)
    finally:
      inside.pop()

  def watched_train(self, state, at, *rest):
    inside.append("train" if at.index == stage else None)
    try:
      return train(self, state, at, *rest)
    finally:
      inside.pop()

  def should_stop():
    if inside and inside[-1] == place:
      asked.append(place)
    return len(asked) == batch

  monkeypatch.setattr(stage_data.StageData, "accumulate", watched)
  monkeypatch.setattr(run_lib.Run, "_train_round", watched_train)
  return should_stop


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
    with pytest.MonkeyPatch.context() as patch:
      seen = watch(tiny(**rare), tmp_path, stop_in(patch, place, batch))
    assert seen.stopped == f"after step {steps}"
    assert len(seen.metrics) == steps - done, "no step is taken twice"
    done = steps
  assert_same(go(tmp_path, **rare), whole)


def hold(marker, *arguments):
  """Is main.py that waits in the second task's pass until it is stopped."""
  accumulate = stage_data.StageData.accumulate

  def slow(data, name, *rest, **options):
    def should_stop():
      marker.touch()
      while not data.should_stop():
        time.sleep(0.05)
      return True

    slowed = dataclasses.replace(data, should_stop=should_stop)
    data_of_pass = slowed if name == "second_moments" else data
    return accumulate(data_of_pass, name, *rest, **options)

  stage_data.StageData.accumulate = slow
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
