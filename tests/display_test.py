"""What is shown while a run goes on: on a terminal, and in a log."""

import io
import logging
import pathlib
import subprocess
import sys
import types

import jax.numpy as jnp
import pytest

import main
from configs import digits_l2p
from libml import scenarios
from libml.results import progress_line
from libml.train import made_once
from libml.train.display import Display

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Clock:
  """Seconds that pass only when a test says so."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def stage(index, classes, images):
  return scenarios.Stage(
    index=index,
    goal="learn",
    train={"learn": range(images)},  # only its length is read
    test_sets={},
    classes={"learn": classes},
    name=f"task {index}",
  )


@pytest.fixture
def shown(caplog):
  """Returns a display of two stages, its clock, and the lines of its log."""
  caplog.set_level(logging.INFO, logger="palimpsest")
  clock = Clock()
  display = Display(progress_line.ProgressLine(clock=clock), clock=clock)
  stages = (stage(0, (0, 1), 100), stage(1, tuple(range(2, 12)), 300))
  names = tuple("abcdefghijkl")
  display.on_start(
    types.SimpleNamespace(
      scenario=types.SimpleNamespace(stages=stages, class_names=names)
    ),
    None,
  )
  return display, clock, caplog


def steps(display, clock, count, seconds=1.0):
  """Takes steps of a stage, each of some seconds."""
  for _ in range(count):
    clock.now += seconds
    display.on_step(0, 0, {"loss": jnp.float32(1.0)})


def begin(display, index=0, total=40, done=0):
  display.on_stage(index, "begin", None)
  display.on_stage(index, "train", None)
  display.on_round(index, done=done, total=total, images=32)


def test_line_names_stage_step_and_times(shown):
  display, clock, _ = shown
  begin(display)
  display.on_compile("train/main")
  clock.now += 30
  assert str(display.shown()) == (
    "stage 1/2 (task 0: a, b): compiling the training step, 30 s"
  )
  steps(display, clock, 1)
  assert str(display.shown()) == "stage 1/2 (task 0: a, b), step 1/40"
  steps(display, clock, 20)
  display.on_means(0, {"loss": 0.5})
  # The second stage has three times as many images.
  assert str(display.shown()) == (
    "stage 1/2 (task 0: a, b), step 21/40, 19 s left, run 2 min 19 s left, "
    "32 images/s, loss 0.5"
  )


def test_resumed_round_counts_from_its_first_step(shown):
  display, clock, _ = shown
  begin(display, index=1, done=30)
  steps(display, clock, 6)
  text = str(display.shown())
  assert text.startswith("stage 2/2 (task 1: 10 classes), step 36/40, 4 s left")


def test_compilation_is_no_part_of_the_pace(shown):
  display, clock, _ = shown
  begin(display)
  steps(display, clock, 40)
  display.on_stage(0, "measure", None)
  display.on_compile("evaluate")
  assert "compiling the evaluation step" in str(display.shown())
  clock.now += 1000
  display.on_work("measuring task_0", 1, 4)
  assert str(display.shown()) == (
    "stage 1/2 (task 0: a, b): measuring task_0, 1/4, run 2 min 0 s left"
  )


def test_log_gets_a_line_every_ten_seconds_and_one_a_stage(shown):
  display, clock, log = shown
  begin(display)
  display.on_compile("train/main")
  steps(display, clock, 40)
  display.on_stage(0, "trained", None)
  clock.now += 2  # Method.after_stage
  display.on_stage(0, "measure", None)
  label = "stage 1/2 (task 0: a, b)"
  lines = log.messages
  assert lines[0] == f"{label}: compiling the training step"
  assert [line.split(", ")[2] for line in lines[1:5]] == [
    f"step {n}/40" for n in (10, 20, 30, 40)
  ]
  assert lines[5:] == [f"{label}: trained 40 steps in 42 s, run 2 min 6 s left"]
  log.clear()
  clock.now += 20
  display.on_stage(0, "end", None)
  assert not log.messages  # there is no work to tell of


def test_fast_stage_logs_one_line(shown):
  display, clock, log = shown
  begin(display)
  steps(display, clock, 40, seconds=0.01)
  display.on_stage(0, "measure", None)
  (line,) = log.messages
  assert "trained 40 steps in 0 s" in line


def test_upstream_weights_are_named_before_their_stage(shown):
  display, clock, log = shown
  inner = display.inner("glyphs_pretrain")
  inner.on_start(
    types.SimpleNamespace(
      scenario=types.SimpleNamespace(
        stages=(stage(0, tuple(range(36)), 10),), class_names=()
      )
    ),
    None,
  )
  begin(inner)
  steps(inner, clock, 21)
  assert str(inner.shown()) == (
    "upstream weights glyphs_pretrain, stage 1/1 (task 0: 36 classes), "
    "step 21/40, 19 s left, 32 images/s"
  )
  assert len(log.messages) == 2
  assert all("upstream weights" in line for line in log.messages)


def test_run_of_upstream_weights_has_the_inner_display(shown, monkeypatch):
  display, _, _ = shown
  seen = []
  monkeypatch.setattr(main, "execute", lambda *_, **k: seen.append(k))
  monkeypatch.setattr(made_once, "upstream", lambda _, config, run: run(config))
  main.upstream(lambda: False, display, "glyphs_pretrain")
  title = seen[0]["observer"].shown().what
  assert title == "upstream weights glyphs_pretrain: starting"


@pytest.mark.parametrize(
  ("seconds", "text"),
  [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (3900, "1 h 5 min")],
)
def test_duration_in_words(seconds, text):
  assert progress_line.duration(seconds) == text


class _Terminal(io.StringIO):
  def isatty(self):
    return True


class _EveryState(progress_line.ProgressLine):
  """Draws each state; a terminal's four frames a second miss short ones."""

  def follow(self, tell):
    super().follow(tell)
    if self._live is not None:
      self._live.refresh()


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
  """Returns what a smoke run writes to a terminal and to a log."""
  config = digits_l2p.get_config("smoke")
  log = logging.getLogger("palimpsest")
  handler = logging.StreamHandler(io.StringIO())
  written = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TERM", "xterm")
    patch.setenv("COLUMNS", "120")
    patch.setattr(log, "level", logging.INFO)
    log.addHandler(handler)
    for stream in (_Terminal(), io.StringIO()):
      patch.setattr(sys, "stderr", stream)
      with _EveryState() as line:
        workdir = tmp_path_factory.mktemp("run")
        main.execute(config, workdir, observer=Display(line))
      written.append(stream.getvalue())
    log.removeHandler(handler)
  return (*written, handler.stream.getvalue())


def test_terminal_shows_each_part_of_a_run(seen):
  terminal, _, _ = seen
  for text in (
    "compiling the training step",
    "stage 3/3 (task 2: 4, 5)",
    "step 4/4",
    "━",
  ):
    assert text in terminal
  assert terminal.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # the bar is removed


def test_log_has_plain_lines_alone(seen):
  _, piped, lines = seen
  assert piped == "" and "\x1b" not in lines
  for number, classes in enumerate(("0, 1", "2, 3", "4, 5")):
    label = f"stage {number + 1}/3 (task {number}: {classes})"
    assert lines.count(f"{label}: trained 4 steps in ") == 2


def test_lines_of_libraries_go_where_stderr_is_at_the_time():
  code = """
import io, logging, sys
from absl import app, logging as absl_logging
from libml.results import console

def main(_):
  console.start(logging.getLogger("palimpsest"))
  sys.stderr = io.StringIO()
  absl_logging.warning("from a library")
  print(sys.stderr.getvalue())

app.run(main)
"""
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )
  assert "from a library" in done.stdout and done.stderr == ""
