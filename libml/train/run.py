"""The loop: begin a stage, train its rounds, measure, audit, save."""

import functools
import pathlib
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax

from libml import scenarios
from libml import trees
from libml.devices import processes
from libml.devices import sharding
from libml.devices.compiled import Compiled
from libml.pipeline.stage_data import StageData
from libml.results import results
from libml.train import checkpoint
from libml.train import compatibility
from libml.train import evaluation
from libml.train import observer as observer_lib
from libml.train import resume
from libml.train import settings as settings_lib
from libml.train import steps
from libml.train import trainer
from libml.train.train_state import TrainState
from libml.train.walk import Walk
from models import lora

# What the same command continues after a stopped audit, for the log.
_UNCHANGED = "with the audit; the results were not changed"

# (state, stage, data) -> what a finished stage's model still knows.
Audit = Callable[[TrainState, scenarios.Stage, StageData], dict[str, Any]]


class Run:
  """The fixed parts of a run, and the loop over its stages.

  Attributes:
    method: The Method.
    scenario: The stages.
    optimizer: The Optimizer.
    settings: Seed, batch size, how often to log and save.
  """

  def __init__(
    self,
    *,
    method: Any,
    scenario: scenarios.Scenario,
    optimizer: Any,
    preprocess: Any,
    settings: settings_lib.Settings,
    mesh: jax.sharding.Mesh,
    rules: sharding.Rules,
    should_stop: Callable[[], bool],
    mixing: Any = None,
    observer: observer_lib.Observer | None = None,
  ):
    """Checks that the parts fit, and builds what all stages share.

    Args:
      method: The Method.
      scenario: The stages.
      optimizer: The Optimizer.
      preprocess: The preprocessing chains for training and for evaluation.
      settings: Seed, batch size, how often to log and save.
      mesh: Of the devices.
      rules: How arrays are sharded over the mesh.
      should_stop: Called after each step and each batch of a pass; True stops
        the run.
      mixing: Mixup, CutMix and label smoothing of training batches; None: off.
      observer: Its hooks are called during the run; None: no hooks.

    Raises:
      ValueError: As `compatibility.check`.
    """
    compatibility.check(
      method,
      scenario,
      batch_size=settings.batch_size,
      mesh=mesh,
      mixes=mixing is not None and mixing.is_on,
    )
    self.method = method
    self.scenario = scenario
    self.optimizer = optimizer
    self.settings = settings
    self._preprocess = preprocess
    self._mixing = mixing
    self._mesh = mesh
    self._place = functools.partial(sharding.place, rules=rules, mesh=mesh)
    self._should_stop = processes.agree(should_stop, mesh)
    self._observer = observer or observer_lib.Observer()
    self._compiled = Compiled(self._observer.on_compile)
    self._evaluator = evaluation.Evaluator(
      method, scenario.num_classes, mesh, self._compiled
    )
    self._trainer = trainer.Trainer(
      method,
      optimizer,
      settings,
      mesh=mesh,
      place=self._place,
      compiled=self._compiled,
      should_stop=self._should_stop,
      observer=self._observer,
    )
    self._rng = jax.random.key(settings.seed)

  def start(self, params: Any) -> TrainState:
    """Returns the state before the first stage.

    Args:
      params: The model's parameters, arrays on the host.

    Raises:
      ValueError: The optimizer does not fit the parameters or the method, or
        the parameters do not fit into memory.
    """
    self._observer.on_work("building the model and the optimizer")
    try:
      rng = jax.random.fold_in(self._rng, 0)
      params = self.method.init_params(params, rng)
      params = self._place({"params": params})["params"]
      rng = jax.random.fold_in(self._rng, 1)
      state = steps.first_state(self.method, self.optimizer, params, rng)
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      raise ValueError(
        "The parameters, with those of the method, do not fit into memory "
        f"({str(error).splitlines()[0]}): take a smaller model, or smaller "
        "options of the method."
      ) from None
    self.optimizer.check(self.method.extra_args(state.memory), params)
    lora.check_trained(self.optimizer.groups.trainable(params))
    state = self._place(state)
    self._observer.on_start(self, state)
    return state

  def changing(self, state: TrainState) -> dict[str, Any]:
    """Returns the leaves that a checkpoint must hold, by name."""
    return resume.changing(state, self.method, self.optimizer)

  def data(self, stage: scenarios.Stage) -> StageData:
    """Returns the images of a stage."""
    return StageData(
      train=stage.train,
      stage=stage.index,
      epoch_steps=stage.epoch_steps,
      preprocess=self._preprocess,
      batch_size=self.settings.batch_size,
      seed=self.settings.seed,
      mesh=self._mesh,
      compiled=self._compiled,
      mixing=self._mixing,
      should_stop=self._should_stop,
      on_pass=self._observer.on_pass,
      on_work=self._observer.on_work,
    )

  def walk(
    self,
    state: TrainState,
    workdir: pathlib.Path,
    facts: Mapping[str, Any],
    writer: Any,
    *,
    audit: Audit = lambda *_: {},
  ) -> tuple[TrainState, dict[str, Any]]:
    """Runs all stages that are left; returns the last state and the results.

    Args:
      state: From `start`; its buffers are donated.
      workdir: Of checkpoints and results.
      facts: Entries of the results that are known already, as `results.facts`
        returns them.
      writer: Writes to TensorBoard and to the terminal.
      audit: Called after each stage; the results hold what it returns.

    Raises:
      Interrupted: `should_stop` said so; a checkpoint is saved.
      FloatingPointError: A loss or gradient is not finite.
    """
    assemble = functools.partial(
      results.assemble,
      self.scenario,
      facts=facts,
      metric=self.method.problem.metric,
    )
    path = workdir / "results.json"
    with self._saver(workdir) as saver:
      walk = self._resume(state, saver, facts, writer)
      data = self.data(self.scenario.stages[0])
      self._evaluator.check(walk.state, data, self.scenario)
      # The run may have been killed after a save, before it wrote results.
      if walk.progress.rows:
        results.write(path, assemble(walk.progress))
      elif self.scenario.before:
        with walk.stoppable():
          row, observed = self._measure(walk, -1, self.scenario.before, data)
        walk.to(rows=(row,), observed=(observed,))
        walk.publish(path, assemble)
      for stage in self.scenario.stages[walk.progress.stage :]:
        walk.restart_stage_clock()
        data = self.data(stage)
        if not walk.progress.begun:
          with walk.stoppable(save=False):  # the last stage's checkpoint holds
            self._trainer.begin(walk, stage, data)
        with walk.stoppable():
          if not walk.progress.trained:
            self._trainer.train(walk, stage, data)
          self._write_edit(walk, stage, workdir)
          measured = self._measure(walk, stage.index, stage.test_sets, data)
          found = self._ask(audit, walk, stage, data)
        self._finish(walk, measured, found)
        walk.publish(path, assemble)
        self._observer.on_stage(stage.index, "end", walk.state)
    return walk.state, assemble(walk.progress)

  def audit(
    self,
    state: TrainState,
    workdir: pathlib.Path,
    facts: Mapping[str, Any],
    audit: Audit,
  ) -> dict[str, Any]:
    """Audits a finished run's last stage; adds the findings to its results.

    The arguments are those of `walk`.

    Raises:
      Interrupted: `should_stop` said so; nothing is changed.
    """
    path, stage = workdir / "results.json", self.scenario.stages[-1]
    with self._saver(workdir) as saver:
      walk = self._resume(state, saver, facts)
      with walk.stoppable(save=False, where=_UNCHANGED):
        found = self._ask(audit, walk, stage, self.data(stage))
      asked = [*walk.progress.audits, *[{}] * len(self.scenario.stages)]
      audits = (*asked[: stage.index], found)
      walk.to(audits=audits)
      walk.save()
    # Keep the other entries: they describe the run, not this process.
    record = {**(results.read(path) or {}), "audits": list(audits)}
    results.write(path, record)
    return record

  def _saver(self, workdir: pathlib.Path) -> checkpoint.Saver:
    folder = workdir / "checkpoints"
    return checkpoint.Saver(folder, keep=self.settings.checkpoint_keep)

  def _resume(self, state, saver, facts, writer=None) -> Walk:
    changing = self.changing(state)
    leaves, progress = resume.restore(
      state, saver, changing, facts, stages=len(self.scenario.stages)
    )
    return Walk(
      self._place(trees.update(state, leaves)),
      progress,
      saver=saver,
      changing=self.changing,
      compiled=self._compiled,
      writer=writer,
    )

  def _measure(
    self,
    walk: Walk,
    stage: int,
    test_sets: Mapping[str, scenarios.TestSet],
    data: StageData,
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns test sets' metrics and counts; stage -1 is the first model."""
    self._observer.on_stage(stage, "measure", walk.state)
    return self._evaluator.measure(
      walk.state, test_sets, data, stop=self._should_stop
    )

  def _ask(
    self, audit: Audit, walk: Walk, stage: scenarios.Stage, data: StageData
  ) -> dict[str, Any]:
    """Returns what the audit finds."""
    self._observer.on_stage(stage.index, "audit", walk.state)
    return audit(walk.state, stage, data)

  def _write_edit(
    self, walk: Walk, stage: scenarios.Stage, workdir: pathlib.Path
  ) -> None:
    """Writes `Method.edit` to disk, unless it is empty."""
    edit = sharding.to_host(self.method.edit(walk.state), self._mesh)
    if edit:
      weights = walk.progress.frozen
      results.write_edit(workdir, stage, edit, weights=weights)

  def _finish(
    self,
    walk: Walk,
    measured: tuple[dict[str, Any], dict[str, Any]],
    found: dict[str, Any],
  ) -> None:
    """Adds a stage's metrics, counts, report and audit to the progress."""
    progress, (row, observed) = walk.progress, measured
    walk.to(
      stage=progress.stage + 1,
      begun=False,
      trained=False,
      round=0,
      step=0,
      rows=(*progress.rows, row),
      observed=(*progress.observed, observed),
      reports=(*progress.reports, results.report(self.method, walk.state)),
      audits=(*progress.audits, found),
      stage_seconds=(*progress.stage_seconds, progress.seconds["stage"]),
      seconds={**progress.seconds, "stage": 0.0},
    )
