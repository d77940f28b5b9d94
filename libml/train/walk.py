"""What changes while a run goes through its stages, and how it is saved."""

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
  """The run was asked to stop, and is saved. The message says where."""


class Walk:
  """The changing parts of a run: its state, its progress and its clocks.

  Attributes:
    state: The arrays. The loop replaces it at each step, which donates the
      buffers of the state before.
    progress: How far the state is.
    writer: Writes to TensorBoard and to the terminal; None: nothing is written.
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
      state: From which the run starts or resumes.
      progress: How far the state is.
      saver: Saves the run's checkpoints.
      changing: state -> {name: leaf} that a checkpoint holds.
      compiled: The run's compiled functions.
      writer: As the attribute.
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
    """Replaces the progress by one with these fields changed."""
    self.progress = self.progress.to(**changes)

  def restart_stage_clock(self) -> None:
    """Starts to count a stage's seconds, on top of those from before a stop."""
    self._stage_began = time.time() - self.progress.seconds["stage"]

  def stop_stage_clock(self) -> None:
    """Stores the seconds of a stage's training in the progress."""
    spent = time.time() - self._stage_began
    self.to(seconds={**self.progress.seconds, "stage": spent})

  def add_train_time(self, seconds: float, batches: int) -> None:
    """Adds timed steps, from which the throughput is computed.

    Args:
      seconds: Wall time of these steps.
      batches: Number of batches that they trained on.
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
    """Saves a checkpoint, waits for it, and writes and shows the results.

    Args:
      path: Of results.json.
      assemble: progress -> the record of the run so far.
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
      where: Message of `Interrupted`; None: the number of steps taken.

    Raises:
      Interrupted: The block raised Stopped.
    """
    try:
      yield
    except stage_data.Stopped:
      if save:
        self.save()
      where = where or f"after step {self.progress.steps}"
      raise Interrupted(where) from None
