"""The loop: stages, rounds, probes, checkpoints, results."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from libml import scenarios
from libml import trees
from libml.devices import processes
from libml.devices import sharding
from libml.devices.compiled import Compiled
from libml.pipeline import stage_data
from libml.results import reporting
from libml.results import results
from libml.train import checkpoint
from libml.train import compatibility
from libml.train import evaluation
from libml.train import observer as observer_lib
from libml.train import progress as progress_lib
from libml.train import resume
from libml.train import settings as settings_lib
from libml.train import steps
from libml.train.train_state import TrainState


class Interrupted(Exception):
  """The run was asked to stop; what was done is saved. Says where it is."""


class Run:
  """One run's settled objects, and the walk through its stages.

  Attributes:
    method: How parameters change.
    scenario: What arrives when.
    optimizer: What a gradient does.
    settings: How the run goes on.
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
    self._compiled = Compiled()
    self._observer = observer or observer_lib.Observer()
    self._rng = jax.random.key(settings.seed)

  def start(self, params: Any) -> TrainState:
    """Returns the state before the first stage.

    Args:
      params: The model's parameters, arrays on the host.
    """
    params = self.method.init_params(params, jax.random.fold_in(self._rng, 0))
    params = self._place({"params": params})["params"]
    rng = jax.random.fold_in(self._rng, 1)
    state = steps.first_state(self.method, self.optimizer, params, rng)
    self.optimizer.check(self.method.extra_args(state.memory), params)
    state = self._place(state)
    self._observer.on_start(self, state)
    return state

  def changing(self, state: TrainState) -> dict[str, Any]:
    """Returns the leaves that a checkpoint must hold, by name."""
    return resume.changing(state, self.method, self.optimizer)

  def data(self, stage: scenarios.Stage) -> stage_data.StageData:
    """Returns the images of a stage."""
    return stage_data.StageData(
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
    )

  def walk(
    self,
    state: TrainState,
    workdir: pathlib.Path,
    facts: Mapping[str, Any],
    reporter: Any,
    *,
    audit: Callable[..., dict[str, Any]] = lambda *_: {},
  ) -> tuple[TrainState, dict[str, Any]]:
    """Goes through all stages that are left; returns last state and results.

    Args:
      state: From `start`; its buffers are given away.
      workdir: Where checkpoints and results go, and come from.
      facts: Joins the results: config, weights, versions.
      reporter: Shows people what goes on.
      audit: (state, stage, data) -> what a finished stage's model still knows.

    Raises:
      Interrupted: It was asked to stop.
      FloatingPointError: A loss or gradient is not finite.
    """
    self._reporter = reporter
    evaluator = evaluation.Evaluator(
      self.method, self.scenario.num_classes, self._mesh, self._compiled
    )
    with checkpoint.Saver(
      workdir / "checkpoints", keep=self.settings.checkpoint_keep
    ) as saver:
      state, progress = self._resume(state, saver, facts)
      evaluator.check(state, self.data(self.scenario.stages[0]), self.scenario)
      self._began = time.time() - progress.seconds["run"]
      if progress.rows:  # a kill may have come between checkpoint and results
        self._write(workdir, progress, facts)
      elif self.scenario.before:
        data = self.data(self.scenario.stages[0])
        self._observer.on_stage(-1, "measure", state)
        row, observed = self._probe(
          evaluator, state, self.scenario.before, data, saver, progress
        )
        progress = progress.to(rows=(row,), observed=(observed,))
        progress = self._save(saver, state, progress)
        saver.wait()
        record = self._write(workdir, progress, facts)
        self._reporter.measured(0, record)
      for stage in self.scenario.stages[progress.stage :]:
        data = self.data(stage)
        self._stage_began = time.time() - progress.seconds["stage"]
        if not progress.trained:
          state, progress = self._train(state, stage, data, saver, progress)
        edit = sharding.to_host(self.method.edit(state), self._mesh)
        if edit:
          results.write_edit(workdir, stage, edit)
        self._observer.on_stage(stage.index, "measure", state)
        row, observed = self._probe(
          evaluator, state, stage.probes, data, saver, progress
        )
        self._observer.on_stage(stage.index, "audit", state)
        found = self._ask(audit, state, stage, data, saver, progress)
        progress = progress.to(
          stage=stage.index + 1,
          begun=False,
          trained=False,
          round=0,
          step=0,
          rows=(*progress.rows, row),
          observed=(*progress.observed, observed),
          reports=(*progress.reports, self.method.report(state)),
          audits=(*progress.audits, found),
          stage_seconds=(*progress.stage_seconds, progress.seconds["stage"]),
          seconds={**progress.seconds, "stage": 0.0},
        )
        progress = self._save(saver, state, progress)
        saver.wait()
        record = self._write(workdir, progress, facts)
        self._reporter.measured(progress.stage, record)
        self._observer.on_stage(stage.index, "end", state)
    return state, results.assemble(
      self.scenario, progress, facts, self.method.problem.figure
    )

  def _probe(self, evaluator, state, probes, data, saver, progress):
    try:
      return evaluator.probe(state, probes, data, stop=self._should_stop)
    except stage_data.Stopped:
      self._save(saver, state, progress)
      raise Interrupted(f"after step {progress.steps}") from None

  def _ask(self, audit, state, stage, data, saver, progress):
    try:
      return audit(state, stage, data)
    except stage_data.Stopped:
      self._save(saver, state, progress)
      raise Interrupted(f"after step {progress.steps}") from None

  def audit(
    self,
    state: TrainState,
    workdir: pathlib.Path,
    facts: Mapping[str, Any],
    audit: Callable[..., dict[str, Any]],
  ) -> dict[str, Any]:
    """Audits a finished run's last stage; its results get the answers.

    The arguments are those of `walk`.

    Raises:
      Interrupted: It was asked to stop; nothing is changed.
    """
    folder, keep = workdir / "checkpoints", self.settings.checkpoint_keep
    path, stage = workdir / "results.json", self.scenario.stages[-1]
    with checkpoint.Saver(folder, keep=keep) as saver:
      state, progress = self._resume(state, saver, facts)
      self._began = time.time() - progress.seconds["run"]
      try:
        found = audit(state, stage, self.data(stage))
      except stage_data.Stopped:
        raise Interrupted("the audit; nothing is changed") from None
      asked = [*progress.audits, *[{}] * len(self.scenario.stages)]
      audits = (*asked[: stage.index], found)
      self._save(saver, state, progress.to(audits=audits))
    # The rest says how the run was made, which need not be here.
    record = {**(results.read(path) or {}), "audits": list(audits)}
    results.write(path, record)
    return record

  def _write(self, workdir, progress, facts) -> dict[str, Any]:
    figure = self.method.problem.figure
    record = results.assemble(self.scenario, progress, facts, figure)
    results.write(workdir / "results.json", record)
    return record

  def _resume(self, state, saver, facts):
    leaves, progress = resume.restore(state, saver, self.changing(state), facts)
    return self._place(trees.update(state, leaves)), progress

  def _save(self, saver, state, progress) -> progress_lib.Progress:
    counts = {
      name: max(count, progress.compiled.get(name, 0))
      for name, count in self._compiled.counts().items()
    }
    now = time.time()
    seconds = {**progress.seconds, "run": now - self._began}
    if progress.begun and not progress.trained:
      seconds["stage"] = now - self._stage_began
    progress = progress.to(
      saves=progress.saves + 1,
      compiled={**progress.compiled, **counts},
      seconds=seconds,
    )
    saver.save(
      progress.saves, self.changing(state), dataclasses.asdict(progress)
    )
    return progress

  def _train(self, state, stage, data, saver, progress):
    method = self.method
    if not progress.begun:
      self._observer.on_stage(stage.index, "begin", state)
      try:
        state = self._place(method.before_stage(state, stage, data))
      except stage_data.Stopped:  # the last stage's checkpoint is as far
        raise Interrupted(f"after step {progress.steps}") from None
      state = self._begin(state, stage, data)
      progress = progress.to(begun=True)
    try:
      data = data.tabulate(method.prepare, state, *method.prepared)
    except stage_data.Stopped:  # it is made anew when the run goes on
      self._save(saver, state, progress)
      raise Interrupted(f"after step {progress.steps}") from None
    rounds = method.rounds(stage, data)
    total, before = sum(r.steps for r in rounds), 0
    for number, round_ in enumerate(rounds):
      if number >= progress.round:
        batches = data.batches(rounds, number, progress.step)
        state, progress = self._train_round(
          state, stage, batches, saver, progress, round_, (before, total)
        )
        state = self._place(round_.finish(state))
        progress = progress.to(round=number + 1, step=0)
      before += round_.steps
    try:
      state = self._place(method.after_stage(state, stage, data))
    except stage_data.Stopped:
      self._save(saver, state, progress)
      raise Interrupted(f"after step {progress.steps}") from None
    jax.block_until_ready(state.params)
    spent = {**progress.seconds, "stage": time.time() - self._stage_began}
    return state, progress.to(trained=True, seconds=spent)

  def _begin(self, state, stage, data):
    begin = self._compiled(
      "begin_stage",
      functools.partial(
        steps.begin_stage,
        tx=self.optimizer.tx,
        restart=self.method.restart_optimizer,
      ),
      # Undonated, the frozen weights would be copied and lie there twice.
      donate_argnums=0,
    )
    per_epoch = self.method.steps_per_epoch(stage, data)
    # Stage keys start at 2: 0 drew fresh parameters, 1 the first state's key.
    return self._place(
      begin(state, np.int32(stage.index + 2), np.int32(per_epoch), self._rng)
    )

  def _train_round(self, state, stage, batches, saver, progress, round_, span):
    before, total = span  # steps of the stage's earlier rounds, and of all
    step_fn = self._compiled(
      f"train/{round_.name}",
      steps.make_train_step(
        round_.loss, self.method.extra_args, self.optimizer
      ),
      donate_argnums=0,
      out_shardings=(
        jax.tree.map(lambda x: x.sharding, state),
        sharding.replicated(self._mesh),
      ),
    )
    window = reporting.Window(stage.index)
    timer, timed_from = None, 0
    self._observer.on_stage(stage.index, "train", state)
    for step in range(progress.step, round_.steps):
      state, metrics = step_fn(state, next(batches))
      self._observer.on_step(stage.index, progress.steps, metrics)
      window.add(progress.steps, metrics)
      progress = progress.to(step=step + 1, steps=progress.steps + 1)
      last = step + 1 == round_.steps
      if timer is None:  # the first step may hold a compilation
        jax.block_until_ready(metrics)
        timer, timed_from = time.time(), progress.steps
      if last or progress.steps % self.settings.log_every == 0:
        self._reporter.train(
          progress.steps,
          stage,
          done=before + step + 1,
          total=total,
          means=window.read(),
        )
      stop = self._should_stop()
      if stop or (progress.steps % self.settings.checkpoint_every == 0):
        window.read()
        progress = self._save(saver, state, progress)
      if stop:
        raise Interrupted(f"after step {progress.steps}")
    if timer is not None:
      seconds = dict(progress.seconds)
      seconds["train"] += time.time() - timer
      steps_timed = progress.steps - timed_from
      seconds["timed_batches"] += steps_timed * len(round_.streams)
      progress = progress.to(seconds=seconds)
    self._observer.on_stage(stage.index, "trained", state)
    return state, progress
