"""Hooks that a run calls while it trains, measures and audits."""

from collections.abc import Mapping
from typing import Any

import jax

from libml.train.train_state import TrainState


class Observer:
  """The hooks of a run; here each does nothing, subclasses override them.

  A hook must not change what it is given. The buffers of a state are donated to
  the next step, so a hook copies what it wants to keep. An exception from a
  hook ends the run as a crash does: nothing more is saved.
  """

  def on_start(self, run: Any, state: TrainState) -> None:
    """Called once, before a checkpoint is looked for.

    Args:
      run: The Run: its method, scenario and optimizer.
      state: Before the first stage.
    """

  def on_stage(self, stage: int, event: str, state: TrainState) -> None:
    """Called where a stage goes from one part to the next.

    Args:
      stage: Its index; -1 for what is measured before the first stage.
      event: "begin": the method's `before_stage` comes next. "train": a round
        comes next, or is resumed. "trained": the last step of a round is
        taken, and its `finish` comes next. "measure": the test sets come next.
        "audit": the audit comes next. "end": the stage is done and saved.
      state: At that moment.
    """

  def on_step(
    self, stage: int, step: int, metrics: Mapping[str, jax.Array]
  ) -> None:
    """Called after each training step, before it is checked for NaN.

    Args:
      stage: Its index.
      step: Steps taken in the run before this one.
      metrics: On the devices.
    """

  def on_round(self, stage: int, *, done: int, total: int, images: int) -> None:
    """Called before the first step of a round, or the first after a resume.

    Args:
      stage: Its index.
      done: Steps of the stage that are taken.
      total: Steps of the stage, of all its rounds.
      images: In a step, over all devices and streams.
    """

  def on_means(self, stage: int, means: Mapping[str, float]) -> None:
    """Called after each `log_every` steps, and at the end of a round.

    Args:
      stage: Its index.
      means: Name -> mean over the steps since the last call.
    """

  def on_work(self, what: str, done: int = 0, total: int | None = None) -> None:
    """Called during work other than training steps, again for each part done.

    Args:
      what: The work, such as "measuring task_0".
      done: Parts of it that are done, such as batches.
      total: All parts; None: unknown.
    """

  def on_compile(self, name: str) -> None:
    """Called when a function of the run is about to be compiled.

    Args:
      name: Of the function, such as "train/main".
    """

  def inner(self, name: str) -> "Observer":
    """Returns the observer of the run that makes this run's upstream weights.

    Args:
      name: Of that run's config.
    """
    del name
    return Observer()

  def on_pass(self, stage: int, name: str, total: Any) -> None:
    """Called before and after a pass over a stage's images.

    Args:
      stage: Its index.
      name: Of the compiled function.
      total: None at the beginning; at the end, what the pass computed.
    """
