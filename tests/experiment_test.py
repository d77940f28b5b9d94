"""A run goes on where it stopped, whatever stopped it."""

import json
import multiprocessing
import pathlib
import random
import shutil
import signal
import time
from concurrent import futures

import jax
import pytest
from toy import tiny
from walks import watch

import main
from libml.train.walk import Interrupted

ROOT = pathlib.Path(__file__).resolve().parent.parent


def numbers(workdir):
  """Returns a run's results without its times."""
  record = json.loads((workdir / "results.json").read_text())
  for name in ("wall_seconds", "examples_per_second", "stage_seconds"):
    del record[name]
  return record


def stop_at(call):
  """Returns a should_stop that says so when it is asked for that time."""
  asked = iter(range(1, call + 1))
  return lambda: next(asked) == call


def newest(workdir):
  return max(
    (workdir / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name)
  )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Returns the workdir of the tiny run, uninterrupted."""
  workdir = tmp_path_factory.mktemp("whole")
  main.execute(tiny(), workdir)
  return workdir


# A stage asks after each of 8 steps, then after each of 3 batches a test set.
# A measurement that was stopped begins anew.
STOPS = {
  "after the first step": 1,
  "after the last step of a stage": 7,
  "in the second batch of a measurement": 2,
  "in the second stage": 3 + 5,
  "in the last batch of all": 3 + 6 + 8 + 9,
}


def test_stopped_run_goes_on_bit_for_bit(tmp_path, whole):
  for call in STOPS.values():
    with pytest.raises(Interrupted):
      main.execute(tiny(), tmp_path, stop_at(call))
  asked = []
  main.execute(tiny(), tmp_path, lambda: asked.append(1))
  assert len(asked) == 9, "the last measurement is all that is left"
  assert numbers(tmp_path) == numbers(whole)


def test_prompts_that_only_hooks_rewrite_are_resumed(tmp_path):
  def run(name, stop=lambda: False):
    config = tiny(epochs=1)
    config.optimizer.prompt = None
    config.method.update(prompt_mask=True, transfer_prompts=True)
    main.execute(config, tmp_path / name, stop)

  run("whole")
  with pytest.raises(Interrupted):
    run("stopped", stop_at(4 + 3 + 2))  # in stage 2, its prompts handed on
  run("stopped")
  assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")


def run_alone(workdir, cache):
  """Is the life of a process that will be killed."""
  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  main.execute(tiny(epochs=4, scenario__num_tasks=2), workdir)


@pytest.fixture(scope="module")
def spawn():
  """Returns a starter of processes in which everything is imported already."""
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(
    [
      "experiment_test",
      "libml.images.preprocess",
      "libml.results.writer",
      "clu.metric_writers",
    ]
  )
  cache = jax.config.jax_compilation_cache_dir

  def start(workdir):
    process = context.Process(target=run_alone, args=(workdir, cache))
    process.start()
    return process

  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    yield start


def finish(process):
  process.join()
  assert process.exitcode == 0


@pytest.fixture(scope="module")
def long(spawn, tmp_path_factory):
  """Returns the workdir of such a process that nobody killed."""
  workdir = tmp_path_factory.mktemp("long")
  finish(spawn(workdir))
  return workdir


def saves(workdir):
  """Returns the numbers of the checkpoints begun and of those finished."""
  names = [path.name for path in (workdir / "checkpoints").glob("[0-9]*")]
  finished = {int(name) for name in names if name.isdigit()}
  return finished | {int(name.partition(".")[0]) for name in names}, finished


def test_killed_run_goes_on_bit_for_bit(tmp_path, long, spawn):
  def kill_and_finish(saving):
    workdir = tmp_path / ("saving" if saving else "saved")
    process = spawn(workdir)
    while process.is_alive():
      begun, finished = saves(workdir)
      if max(begun if saving else finished, default=-1) >= 5:
        break
      time.sleep(0.001)
    time.sleep(random.uniform(0, 0.1) * (not saving))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "killed in the middle"
    finish(spawn(workdir))
    assert numbers(workdir) == numbers(long)

  with futures.ThreadPoolExecutor(2) as pool:
    list(pool.map(kill_and_finish, [True, False]))


def test_sigterm_saves_and_exits_with_0(tmp_path, main_py, whole):
  process = main_py("tests/toy.py", tmp_path / "stopped")
  for line in process.stdout:
    if "stage 1/3 (task 0: 0, 1): compiling the training step" in line:
      process.send_signal(signal.SIGTERM)
      break
  output, _ = process.communicate()
  assert process.returncode == 0, output
  assert "Stopped and saved. The same command continues" in output
  main.execute(tiny(), tmp_path / "stopped")
  assert numbers(tmp_path / "stopped") == numbers(whole)


def test_finished_run_is_not_touched(whole):
  before = (whole / "results.json").read_bytes()
  seen = watch(tiny(), whole)
  assert seen.run is None, "nothing is built"
  record = seen.record
  assert record["final"] == numbers(whole)["final"]
  assert (whole / "results.json").read_bytes() == before


def test_other_config_is_refused_with_what_differs(whole):
  with pytest.raises(ValueError) as error:
    main.execute(tiny(seed=7, batch_size=4), whole)
  message = str(error.value)
  assert "batch_size: 8, now 4; seed: 42, now 7. Take another" in message


def test_export_is_made_up_for(tmp_path):
  config = tiny(export=True)
  main.execute(config, tmp_path)
  export = tmp_path / "export"
  first = {file.name: file.read_bytes() for file in export.iterdir()}
  shutil.rmtree(export)  # as if killed right before
  main.execute(config, tmp_path)
  again = {file.name: file.read_bytes() for file in export.iterdir()}
  assert "params.npz" in first and again == first


def test_results_lie_there_after_each_stage(tmp_path):
  with pytest.raises(Interrupted):
    main.execute(tiny(), tmp_path, stop_at(8 + 3 + 1))
  record = numbers(tmp_path)
  assert (record["stages_done"], record["finished"]) == (1, False)
