"""A run on its way through the stages: what moves, and how it is saved."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax

from libml.devices.compiled import Compiled
from libml.pipeline import stage_data
from libml.results import results
from libml.train import checkpoint
from libml.train.progress import Progress
from libml.train.train_state import TrainState


class Interrupted(Exception):
  """The run was asked to stop, and is saved. The message says where it is."""


class Walk:
  """What moves while a run goes on.

  Attributes:
    state: The arrays; the loop puts the next state in the place of the last,
      whose buffers are donated.
    progress: How far the state is.
    writer: Shows people what goes on; None: nobody.
  """

  def __init__(
    self,
    state: TrainState,
    progress: Progress,
    *,
    saver: checkpoint.Saver,
    changing: Callable[[TrainState], Mapping[str, jax.Array]],
    compiled: Compiled,
    writer: Any = None,
  ):
    """Starts the clock.

    Args:
      state: From which the run goes on.
      progress: How far it is.
      saver: Of the run's checkpoints.
      changing: Returns the leaves that a checkpoint holds.
      compiled: The run's compiled functions.
      writer: Shows people what goes on.
    """
    self.state = state
    self.progress = progress
    self.writer = writer
    self._saver = saver
    self._changing = changing
    self._compiled = compiled
    self._run_began = time.time() - progress.seconds["run"]
    self._stage_began = 0.0
    self.restart_stage_clock()

  def to(self, **changes: Any) -> None:
    """Changes fields of the progress."""
    self.progress = self.progress.to(**changes)

  def restart_stage_clock(self) -> None:
    """Counts a stage's seconds from those that it has taken already."""
    self._stage_began = time.time() - self.progress.seconds["stage"]

  def stop_stage_clock(self) -> None:
    """Notes the seconds that a stage's training took."""
    spent = time.time() - self._stage_began
    self.to(seconds={**self.progress.seconds, "stage": spent})

  def add_train_time(self, seconds: float, batches: int) -> None:
    """Adds to what the throughput is computed from.

    Args:
      seconds: Wall time of some steps.
      batches: That these steps trained on.
    """
    spent = dict(self.progress.seconds)
    spent["train"] += seconds
    spent["timed_batches"] += batches
    self.to(seconds=spent)

  def save(self) -> None:
    """Starts to write a checkpoint."""
    if self.progress.begun and not self.progress.trained:
      self.stop_stage_clock()
    before = self.progress.compiled
    counts = {
      name: max(count, before.get(name, 0))
      for name, count in self._compiled.counts().items()
    }
    spent = {**self.progress.seconds, "run": time.time() - self._run_began}
    self.to(
      saves=self.progress.saves + 1,
      compiled={**before, **counts},
      seconds=spent,
    )
    self._saver.save(
      self.progress.saves,
      self._changing(self.state),
      dataclasses.asdict(self.progress),
    )

  def publish(
    self, path: pathlib.Path, assemble: Callable[[Progress], dict[str, Any]]
  ) -> None:
    """Saves, and only then writes and shows the results.

    Args:
      path: Of results.json.
      assemble: Returns the record of a run so far.
    """
    self.save()
    self._saver.wait()
    record = assemble(self.progress)
    results.write(path, record)
    if self.writer:
      self.writer.measured(self.progress.stage, record)

  @contextlib.contextmanager
  def stoppable(
    self, *, save: bool = True, where: str | None = None
  ) -> Iterator[None]:
    """Turns a stop inside the block into a checkpoint and `Interrupted`.

    Args:
      save: Whether the state has changed since the last checkpoint.
      where: Takes the step's place in the message.
    """
    try:
      yield
    except stage_data.Stopped:
      if save:
        self.save()
      where = where or f"after step {self.progress.steps}"
      raise Interrupted(where) from None
