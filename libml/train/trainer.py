"""Training a stage: its start, and the steps of its rounds."""

import functools
import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from libml import optim
from libml import scenarios
from libml.devices import sharding
from libml.devices.compiled import Compiled
from libml.pipeline.stage_data import StageData
from libml.pipeline.stage_data import Stopped
from libml.results import writer as writer_lib
from libml.train import settings as settings_lib
from libml.train import steps
from libml.train.method import Method
from libml.train.method import Round
from libml.train.observer import Observer
from libml.train.train_state import TrainState
from libml.train.walk import Walk


class Trainer:
  """Trains stages; rounds with the same name share one compiled step."""

  def __init__(
    self,
    method: Method,
    optimizer: optim.Optimizer,
    settings: settings_lib.Settings,
    *,
    mesh: jax.sharding.Mesh,
    place: Callable[[Any], Any],
    compiled: Compiled,
    should_stop: Callable[[], bool],
    observer: Observer,
  ):
    """Keeps the run's objects.

    Args:
      method: Its hooks and rounds are run.
      optimizer: Updates the parameters.
      settings: Seed, how often to log and save.
      mesh: Of the devices.
      place: Shards every leaf of a state by the sharding rules.
      compiled: The run's compiled functions.
      should_stop: Called after each step; True stops the run.
      observer: Its hooks are called during training.
    """
    self._method = method
    self._optimizer = optimizer
    self._settings = settings
    self._mesh = mesh
    self._place = place
    self._compiled = compiled
    self._should_stop = should_stop
    self._observer = observer

  def begin(self, walk: Walk, stage: scenarios.Stage, data: StageData) -> None:
    """Prepares the state for a stage's first step.

    Raises:
      Stopped: The process was asked to stop.
    """
    self._observer.on_stage(stage.index, "begin", walk.state)
    state = self._place(self._method.before_stage(walk.state, stage, data))
    begin = self._compiled(
      "begin_stage",
      functools.partial(
        steps.begin_stage,
        tx=self._optimizer.tx,
        restart=self._method.restart_optimizer,
      ),
      # Donate the state, or XLA keeps a second copy of the frozen weights.
      donate_argnums=0,
    )
    per_epoch = np.int32(self._method.steps_per_epoch(stage, data))
    # Stage keys start at 2: 0 drew fresh parameters, 1 the first state's key.
    rng, index = jax.random.key(self._settings.seed), np.int32(stage.index + 2)
    walk.state = self._place(begin(state, index, per_epoch, rng))
    walk.to(begun=True)

  def train(self, walk: Walk, stage: scenarios.Stage, data: StageData) -> None:
    """Trains the rounds of a stage that are left.

    Raises:
      Stopped: The process was asked to stop.
      FloatingPointError: A loss or gradient is not finite.
    """
    method = self._method
    data = data.tabulate(method.prepare, walk.state, *method.prepared)
    rounds = method.rounds(stage, data)
    done, total = 0, sum(r.steps for r in rounds)
    for number, round_ in enumerate(rounds):
      if number >= walk.progress.round:
        batches = data.batches(rounds, number, walk.progress.step)
        span = (done, total)
        self._train_round(walk, stage, round_, batches, span=span)
        walk.state = self._place(round_.finish(walk.state))
        walk.to(round=number + 1, step=0)
      done += round_.steps
    walk.state = self._place(method.after_stage(walk.state, stage, data))
    jax.block_until_ready(walk.state.params)
    walk.stop_stage_clock()
    walk.to(trained=True)

  def _train_round(
    self,
    walk: Walk,
    stage: scenarios.Stage,
    round_: Round,
    batches: Iterator[dict[str, Any]],
    *,
    span: tuple[int, int],
  ) -> None:
    """Takes the steps of a round that are left.

    Args:
      walk: Its progress says which step comes next.
      stage: Of the round.
      round_: Its loss and number of steps.
      batches: From that step on.
      span: Steps of the stage's earlier rounds, and of all its rounds.

    Raises:
      Stopped: The process was asked to stop.
      FloatingPointError: A loss or gradient is not finite.
    """
    step_fn = self._step(round_, walk.state)
    window, began = writer_lib.Window(stage.index), None
    self._observer.on_stage(stage.index, "train", walk.state)
    self._observer.on_round(
      stage.index,
      done=span[0] + walk.progress.step,
      total=span[1],
      images=self._settings.batch_size * len(round_.streams),
    )
    for step in range(walk.progress.step, round_.steps):
      walk.state, metrics = step_fn(walk.state, next(batches))
      self._observer.on_step(stage.index, walk.progress.steps, metrics)
      window.add(walk.progress.steps, metrics)
      walk.to(step=step + 1, steps=walk.progress.steps + 1)
      taken = walk.progress.steps
      if began is None:  # the first step may hold a compilation
        jax.block_until_ready(metrics)
        began = time.time(), taken
      if step + 1 == round_.steps or taken % self._settings.log_every == 0:
        means = window.read()
        walk.writer.train(taken, stage, means)
        self._observer.on_means(stage.index, means)
      self._save_or_stop(walk, window)
    if began is not None:
      timed = walk.progress.steps - began[1]
      walk.add_train_time(time.time() - began[0], timed * len(round_.streams))
    self._observer.on_stage(stage.index, "trained", walk.state)

  def _step(self, round_: Round, state: TrainState) -> Callable[..., Any]:
    """Returns the compiled step of a round."""
    return self._compiled(
      f"train/{round_.name}",
      steps.make_train_step(
        round_.loss, self._method.extra_args, self._optimizer
      ),
      donate_argnums=0,
      out_shardings=(
        jax.tree.map(lambda x: x.sharding, state),
        sharding.replicated(self._mesh),
      ),
    )

  def _save_or_stop(self, walk: Walk, window: writer_lib.Window) -> None:
    """Saves at every `checkpoint_every`-th step; raises Stopped if asked to."""
    stop = self._should_stop()
    due = walk.progress.steps % self._settings.checkpoint_every == 0
    if stop or due:
      window.read()  # raises where a value is not finite, before it is saved
    if stop:
      raise Stopped
    if due:
      walk.save()
