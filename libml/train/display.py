"""The progress of a run on one line: stage, step, and time left."""

import dataclasses
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax

from libml import scenarios
from libml.results.progress_line import ProgressLine
from libml.results.progress_line import Shown
from libml.results.progress_line import duration
from libml.train.observer import Observer
from libml.train.train_state import TrainState

# Most classes that a stage's label names; of more it gives the number.
_MOST_CLASSES = 5

# First part of a compiled function's name -> what the line calls it.
_COMPILED = {"train": "the training step", "evaluate": "the evaluation step"}


@dataclasses.dataclass
class _Work:
  """The work at present: steps of a round, or parts of other work.

  Attributes:
    began: Time of the clock, in seconds.
    what: The work; "": training.
    done: Units of it that are done.
    total: All units; None: unknown.
    images: Images of a training step; 0: other work.
    timed: Time of the clock and units done after the first unit, which may
      include a compilation; None: no unit is done.
  """

  began: float
  what: str = ""
  done: int = 0
  total: int | None = None
  images: int = 0
  timed: tuple[float, int] | None = None

  def to(self, done: int, now: float) -> None:
    """Counts units."""
    self.done = done
    if self.timed is None and done:
      self.timed = now, done

  def pace(self, now: float) -> float | None:
    """Returns the seconds that a unit takes; None: not yet known."""
    if self.timed is None or self.done <= self.timed[1]:
      return None
    return (now - self.timed[0]) / (self.done - self.timed[1])


class Display(Observer):
  """Shows stage, step, images a second and the time that is left, on one line.

  It counts steps when they are dispatched, and never waits for a device.
  """

  def __init__(
    self,
    line: ProgressLine,
    *,
    title: str = "",
    clock: Callable[[], float] = time.monotonic,
  ):
    """Shows nothing yet.

    Args:
      line: Where to show it.
      title: Prefix of all that is shown.
      clock: Returns seconds.
    """
    self._line = line
    self._title = title
    self._clock = clock
    self._labels: Sequence[str] = ()
    self._sizes: Sequence[int] = ()
    self._stage = -1
    self._work = _Work(clock(), "starting")
    self._compiling: tuple[str, float] | None = None
    self._loss: float | None = None
    # Of the stage, in this process: when its training began, and its steps.
    self._training: tuple[float, int] | None = None
    # Share of the stage that is done.
    self._share = 0.0
    # After the first step: seconds of the clock, and images as in `_done`.
    self._first: tuple[float, float] | None = None
    self._compiled = 0.0  # seconds since then that compilations took

  def shown(self) -> Shown:
    """Returns what to show now."""
    # Another thread may call this: read once what may become None.
    now, work, compiling = self._clock(), self._work, self._compiling
    if compiling:
      name, began = compiling
      what = _joined(self._place(), f"compiling {name}")
      return Shown(what, notes=(duration(now - began),))
    notes, pace = [], work.pace(now)
    if pace and work.total:
      notes += [f"{duration((work.total - work.done) * pace)} left"]
    elif work.total is None and now - work.began >= 1:
      notes += [duration(now - work.began)]
    notes += self._run_left(now)
    if pace and work.images:
      notes += [f"{work.images / pace:.0f} images/s"]
    if work.images and self._loss is not None:
      notes += [f"loss {self._loss:.3g}"]
    return Shown(
      _joined(self._place(), work.what),
      done=work.done,
      total=work.total,
      unit="step" if work.images else "",
      notes=tuple(notes),
    )

  def inner(self, name: str) -> "Display":
    """Returns the display of a run that makes upstream weights."""
    title = f"upstream weights {name}"
    return Display(self._line, title=title, clock=self._clock)

  def on_start(self, run: Any, state: TrainState) -> None:
    """Reads the stages' names and sizes."""
    del state
    stages = run.scenario.stages
    names = run.scenario.class_names
    self._labels = [
      f"stage {s.index + 1}/{len(stages)} ({_named(s, names)})" for s in stages
    ]
    self._sizes = [sum(map(len, s.train.values())) for s in stages]

  def on_stage(self, stage: int, event: str, state: TrainState) -> None:
    """Moves to a stage; logs the time of its training before it is measured."""
    del state
    self._stage = stage
    if event in ("begin", "measure"):
      self._share = float(event == "measure")
      self._say_trained()
    # Not logged: there is nothing to tell before the work begins.
    self._end_compilation()
    self._work = _Work(self._clock())

  def on_round(self, stage: int, *, done: int, total: int, images: int) -> None:
    """Begins to count the steps of a round."""
    self._begin(_Work(self._clock(), done=done, total=total, images=images))
    if self._training is None:
      self._training = self._clock(), 0

  def on_step(
    self, stage: int, step: int, metrics: Mapping[str, jax.Array]
  ) -> None:
    """Counts a step."""
    del stage, step, metrics
    if self._training:
      self._training = self._training[0], self._training[1] + 1
    self._end_compilation()
    self._work.to(self._work.done + 1, self._clock())
    self._share = self._work.done / (self._work.total or 1)
    if self._first is None:
      self._first = self._clock(), self._done()
    self._line.follow(self.shown)

  def on_means(self, stage: int, means: Mapping[str, float]) -> None:
    """Keeps the loss, which the line shows."""
    self._loss = means["loss"]

  def on_work(self, what: str, done: int = 0, total: int | None = None) -> None:
    """Counts a part of other work."""
    if what != self._work.what:
      self._begin(_Work(self._clock(), what, total=total))
    self._end_compilation()
    self._work.to(done, self._clock())
    self._line.follow(self.shown)

  def on_compile(self, name: str) -> None:
    """Shows that a function is compiled; logs it for the training step."""
    kind, _, _ = name.partition("/")
    self._end_compilation()
    self._compiling = _COMPILED.get(kind, name), self._clock()
    if kind == "train":
      self._line.say(self.shown().what)
    self._line.follow(self.shown)

  def _place(self) -> str:
    """Returns the run, where it has a title, and the stage."""
    label = self._labels[self._stage] if self._stage >= 0 else ""
    return ", ".join(filter(None, (self._title, label)))

  def _begin(self, work: _Work) -> None:
    self._end_compilation()
    self._work = work
    self._line.follow(self.shown)

  def _end_compilation(self) -> None:
    if self._compiling and self._first:
      self._compiled += self._clock() - self._compiling[1]
    self._compiling = None

  def _done(self) -> float:
    """Returns the images of the finished stages, and the share of this one."""
    stage = max(self._stage, 0)
    return sum(self._sizes[:stage]) + self._share * self._sizes[stage]

  def _run_left(self, now: float) -> list[str]:
    """Returns the time left of the run, in words; []: unknown."""
    if self._first is None or self._done() <= self._first[1]:
      return []
    spent = now - self._first[0] - self._compiled
    pace = spent / (self._done() - self._first[1])
    left = (sum(self._sizes) - self._done()) * pace
    return [f"run {duration(left)} left"] if len(self._sizes) > 1 else []

  def _say_trained(self) -> None:
    """Logs the time that the training of a stage took."""
    if self._training is None:
      return
    (began, steps), now = self._training, self._clock()
    text = f"trained {steps} steps in {duration(now - began)}"
    self._line.say(
      ", ".join((f"{self._place()}: {text}", *self._run_left(now)))
    )
    self._training = None


def _joined(*parts: str) -> str:
  return ": ".join(filter(None, parts))


def _named(stage: scenarios.Stage, names: Sequence[str]) -> str:
  """Returns a stage's name with its classes, or their number."""
  classes = stage.classes.get(stage.goal, ())
  if ":" in stage.name or not classes:
    return stage.name
  if len(classes) > _MOST_CLASSES:
    return f"{stage.name}: {len(classes)} classes"
  listed = (names[c] if names else str(c) for c in classes)
  return f"{stage.name}: {', '.join(listed)}"
