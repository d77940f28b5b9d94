"""A run, and all that it went through."""

import types

import numpy as np
import pytest

import main
from libml import trees
from libml.pipeline import stage_data
from libml.results import reporting
from libml.train import evaluation
from libml.train import run as run_lib


def host(state):
  """Returns a state's parameters and memory on the host, by name."""
  tree = {"params": state.params, "memory": state.memory}
  return {k: np.array(v) for k, v in trees.flatten(tree).items()}


def watch(config, workdir, should_stop=lambda: False):
  """Runs a config; returns what there was to see, task by task.

  Args:
    config: Of a method with one round a task.
    workdir: Of the run.
    should_stop: Asked after each batch.

  Returns:
    States as `host` gives them, when training begins (begun), ends (trained)
    and when a task is measured (merged); metrics of each step; sums over
    images, (stage, name, {name: sum}); the run, its last state and record, or
    where it was stopped.
  """
  seen = types.SimpleNamespace(
    begun=[], trained=[], merged=[], metrics=[], sums=[], stopped=None
  )

  class Run(run_lib.Run):
    def start(self, params):
      seen.run, state = self, super().start(params)
      seen.start = host(state)
      return state

    def _train_round(self, state, *rest):
      seen.begun.append(host(state))
      state, progress = super()._train_round(state, *rest)
      seen.trained.append(host(state))
      return state, progress

    def walk(self, *given, **options):
      seen.state, record = super().walk(*given, **options)
      return seen.state, record

  class Evaluator(evaluation.Evaluator):
    def probe(self, state, *rest, **options):
      seen.merged.append(host(state))
      return super().probe(state, *rest, **options)

  class StageData(stage_data.StageData):
    def accumulate(self, name, *rest, **options):
      total = super().accumulate(name, *rest, **options)
      seen.sums.append((self.stage, name, trees.flatten(total)))
      return total

  class Window(reporting.Window):
    def add(self, step, metrics):
      seen.metrics.append(metrics)
      super().add(step, metrics)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run_lib, "Run", Run)
    patch.setattr(evaluation, "Evaluator", Evaluator)
    patch.setattr(stage_data, "StageData", StageData)
    patch.setattr(reporting, "Window", Window)
    try:
      seen.record = main.execute(config, workdir, should_stop)
    except run_lib.Interrupted as stop:
      seen.stopped = str(stop)
  return seen
