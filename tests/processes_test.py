"""Two processes make one run: they find the same, stop and die together."""

import json
import os
import re
import signal
import time

import children
import numpy as np
import pytest

import main
from configs import cifar100_l2p
from libml import trees
from libml.devices import processes
from libml.train import weights
from models import pretrained

# Two stages of 12 steps.
CONFIG = (
  "--my_config=tests/toy.py",
  "--my_config.export=True",
  "--my_config.scenario.num_tasks=2",
)
FORGET = (
  "--my_config=tests/gs_toy.py",
  "--my_config.export=True",
  "--my_config.scenario.num_requests=2",
  "--my_config.method.beta=(0.2, 0.3)",
)
# Ours from a collective that failed, JAX's where none was waited for.
ENDED = "Another process of this run has ended|another task died"
FSDP = "--my_config.sharding=((r'.*', 'fsdp:512'),)"


def record(workdir):
  """Returns a run's results without its times and place."""
  found = json.loads((workdir / "results.json").read_text())
  times = ("wall_seconds", "examples_per_second", "stage_seconds")
  for key in (*times, "devices", "config"):
    del found[key]
  return found


def wait_for(process, text):
  """Waits until a process has printed something."""
  until = time.monotonic() + children.SECONDS
  while time.monotonic() < until:
    if process.log.exists() and text in process.log.read_text():
      return
    assert process.is_alive(), process.log.read_text()
    time.sleep(0.02)
  pytest.fail(f"{text!r} never came: {process.log.read_text()}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def whole(folder):
  """Returns the workdir of an uninterrupted run, and what was printed."""
  workdir = folder / "whole"
  codes, printed = children.finish(
    *children.pair(workdir, *CONFIG, logs=folder)
  )
  assert codes == [0, 0], printed
  return workdir, printed


@pytest.fixture(scope="module")
def alone(folder):
  """Returns the workdir of the same run by one process on one device."""
  workdir = folder / "alone"
  process = children.start(
    children.command_line,
    f"--workdir={workdir}",
    *CONFIG,
    log=folder / "alone.log",
  )
  codes, printed = children.finish(process)
  assert codes == [0], printed
  return workdir


def assert_same(ours, theirs):
  """Compares runs: accuracies and counts exactly, losses and weights nearly."""
  one, other = record(ours), record(theirs)
  for key in ("matrix", "summary", "observed", "train_steps"):
    assert one[key] == other[key], key
  for mine, its in zip(one["test_sets"], other["test_sets"], strict=True):
    mine, its = trees.flatten(mine), trees.flatten(its)
    for name, value in mine.items():
      np.testing.assert_allclose(value, its[name], rtol=1e-4, err_msg=name)
  exports = [run / "export" / "params.npz" for run in (ours, theirs)]
  with np.load(exports[0]) as a, np.load(exports[1]) as b:
    assert a.files == b.files
    for name in a.files:
      np.testing.assert_allclose(
        a[name], b[name], rtol=1e-3, atol=1e-5, err_msg=name
      )


def test_two_processes_find_what_one_device_finds(whole, alone):
  workdir, _ = whole
  devices = json.loads((workdir / "results.json").read_text())["devices"]
  assert devices["processes"] == devices["count"] == 2
  assert_same(workdir, alone)


def test_two_processes_forget_with_the_blocks_that_one_selects(tmp_path):
  process = children.start(
    children.command_line,
    f"--workdir={tmp_path / 'one'}",
    *FORGET,
    log=tmp_path / "one.log",
  )
  both = children.pair(tmp_path / "two", *FORGET, logs=tmp_path)
  codes, printed = children.finish(process, *both)
  assert codes == [0, 0, 0], printed
  assert_same(tmp_path / "two", tmp_path / "one")
  assert set(record(tmp_path / "two")["compiled_steps"].values()) == {1}
  for number in range(2):
    name = f"edits/stage_{number}.npz"
    files = (np.load(tmp_path / run / name) for run in ("one", "two"))
    with next(files) as one, next(files) as two:
      assert one.files == two.files
      for name in one.files:
        np.testing.assert_array_equal(one[name] == 0, two[name] == 0)


def test_only_the_first_process_writes(whole):
  workdir, (first, second) = whole
  assert "after  task 0" in first and "after  task 0" not in second
  assert "stage 1/2" in first and "stage" not in second
  assert len(list(workdir.glob("events.out.tfevents.*"))) == 1
  names = {path.name for path in workdir.iterdir()}
  assert not [n for n in names if n.endswith(".tmp") or n.startswith(".")]


def test_sigterm_to_one_stops_both_at_the_same_step(interrupted):
  codes, printed = interrupted["stopped"]
  assert codes == [0, 0], printed
  ends = [re.search(r"continues after step (\d+)\.", text) for text in printed]
  assert all(ends), printed
  assert 2 <= int(ends[0][1]) < 24
  assert ends[0][1] == ends[1][1]


def test_killed_process_ends_the_other_within_a_minute(interrupted):
  codes, printed = interrupted["killed"]
  assert "Resuming in stage 1" in printed[0]
  assert codes[0] in (1, -signal.SIGABRT) and codes[1] == -signal.SIGKILL
  assert re.search(ENDED, printed[0]), printed
  assert interrupted["seconds"] < 60


def test_stopped_and_killed_run_goes_on_bit_for_bit(interrupted, whole):
  codes, printed = interrupted["resumed"]
  assert codes == [0, 0], printed
  assert "Resuming in stage" in printed[0]
  workdir, _ = whole
  assert record(interrupted["workdir"]) == record(workdir)
  ours, theirs = (
    (folder / "export" / "params.npz").read_bytes()
    for folder in (interrupted["workdir"], workdir)
  )
  assert ours == theirs


@pytest.fixture(scope="module")
def interrupted(folder):
  """Returns what one run printed that was stopped, killed and resumed."""
  workdir, found = folder / "interrupted", {}
  both = children.pair(workdir, *CONFIG, logs=folder)
  wait_for(both[0], "compiling the training step")
  os.kill(both[1].pid, signal.SIGTERM)
  found["stopped"] = children.finish(*both)
  both = children.pair(workdir, *CONFIG, logs=folder)
  wait_for(both[0], "stage 1/2, measured")
  both[1].kill()
  began = time.monotonic()
  found["killed"] = children.finish(*both)
  found["seconds"] = time.monotonic() - began
  both = children.pair(workdir, *CONFIG, logs=folder)
  found["resumed"] = children.finish(*both)
  return {"workdir": workdir, **found}


def test_sharded_weights_of_two_processes_serve_in_one(folder, alone):
  workdir = folder / "moved"
  both = children.pair(workdir, *CONFIG, FSDP, logs=folder)
  wait_for(both[0], "stage 1/2, measured")
  both[0].kill()  # the one that the other asks who is there
  codes, printed = children.finish(*both)
  assert codes[0] == -signal.SIGKILL and codes[1] in (1, -signal.SIGABRT)
  assert re.search(ENDED, printed[1]), printed
  process = children.start(
    children.command_line,
    f"--workdir={workdir}",
    *CONFIG,
    log=folder / "moved.log",
  )
  codes, printed = children.finish(process)
  assert codes == [0], printed
  assert "Resuming in stage" in printed[0]
  assert "cannot be used" not in printed[0]
  assert_same(workdir, alone)


MISFITS = {
  "config": (
    "--my_config.seed=7",
    r"ValueError: The processes \[1\] do not have .*conf",
  ),
  "folder": ("--workdir={}", r"ValueError: The processes \[1\] do not see"),
}


@pytest.mark.parametrize(("own", "message"), MISFITS.values(), ids=MISFITS)
def test_misfits_are_named_by_both(folder, tmp_path, own, message):
  workdir = tmp_path / "run"
  own = own.format(tmp_path / "elsewhere")
  codes, printed = children.finish(
    *children.pair(workdir, *CONFIG, logs=tmp_path, own=((), (own,)))
  )
  assert codes == [1, 1], printed
  assert all(re.search(message, text) for text in printed), printed
  assert not any("Traceback" in text for text in printed)


def test_process_that_fails_alone_ends_the_other(tmp_path):
  config = cifar100_l2p.get_config("smoke")
  model = main.build_method(config, 6, 3).model
  params, _ = weights.first(config, model)
  cwds = tmp_path / "0", tmp_path / "1"
  for cwd in cwds:
    cwd.mkdir()
  pretrained.save(cwds[0] / "weights.npz", params)
  both = children.pair(
    tmp_path / "run",
    f"--my_config={children.ROOT}/configs/cifar100_l2p.py:smoke",
    "--my_config.init_checkpoint=weights.npz",
    logs=tmp_path,
    cwds=cwds,
  )
  began = time.monotonic()
  codes, printed = children.finish(*both)
  assert time.monotonic() - began < 60
  assert codes == [1, 1], printed
  assert "FileNotFoundError" in printed[1] and "weights.npz" in printed[1]
  assert "Another process of this run has ended" in printed[0]


FLAGS = {
  "some": (("localhost:80", 2, None), {}, "go together"),
  "both": (("localhost:80", 2, 0), {"detect": True}, "go together"),
  "no port": (("localhost", 2, 0), {}, "=localhost must be HOST:PORT"),
  "none": (("localhost:80", 0, 0), {}, "num_processes=0 must be 1 or more"),
  "id": (("localhost:80", 2, 2), {}, "process_id=2 must lie in 0 to 1"),
}


@pytest.mark.parametrize(
  ("given", "options", "message"), FLAGS.values(), ids=FLAGS
)
def test_flags_that_do_not_fit_are_named(given, options, message):
  with pytest.raises(ValueError, match=message):
    processes.join(*given, **options)


def test_nothing_to_detect_is_said(tmp_path):
  process = children.start(
    children.command_line,
    f"--workdir={tmp_path / 'run'}",
    *CONFIG,
    "--distributed",
    log=tmp_path / "log",
  )
  codes, (printed,) = children.finish(process)
  assert codes == [1]
  assert (
    "ValueError: --distributed found neither a TPU pod nor SLURM" in printed
  )
  assert "Traceback" not in printed
