"""Measures a model on the test sets of a stage."""

import functools
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from libml import scenarios
from libml.devices import sharding
from libml.devices.compiled import Compiled
from libml.pipeline import stage_data
from libml.problems import Problem
from libml.train import steps


class Evaluator:
  """Measures test sets with one compiled step for each type of problem."""

  def __init__(
    self,
    method: Any,
    num_classes: int,
    mesh: jax.sharding.Mesh,
    compiled: Compiled,
  ):
    self._method = method
    self._num_classes = num_classes
    self._mesh = mesh
    self._compiled = compiled
    self._precompute = compiled("precompute", method.precompute)
    # Whether `precompute` returns anything; `check` finds out.
    self._has_fixed = False
    # Test set -> one dict of arrays on the mesh for each batch of its sweep.
    self._fixed: dict[str, list[dict[str, jax.Array]]] = {}

  def check(
    self,
    state: Any,
    data: stage_data.StageData,
    scenario: scenarios.Scenario,
  ) -> None:
    """Traces a batch of each type of problem: errors come before training."""
    self._has_fixed = False
    test_sets: dict[Any, scenarios.TestSet] = {}
    for stage in scenario.stages:
      for test_set in stage.test_sets.values():
        test_sets.setdefault(type(test_set.problem), test_set)
    for test_set in test_sets.values():
      batches = data.sweep(test_set.subset, augment=test_set.augment)
      batch = sharding.place_batch(next(batches), self._mesh)
      fixed = jax.eval_shape(
        self._method.precompute, state.params, state.memory, batch
      )
      self._has_fixed = bool(fixed)
      batch = {**batch, **fixed}
      jax.eval_shape(
        functools.partial(
          self._fn(test_set.problem), state.params, state.memory
        ),
        batch,
        self._constants(test_set),
      )

  def _problem(self, test_set: scenarios.TestSet) -> Problem:
    return test_set.problem or self._method.problem

  def _fn(self, problem: Problem | None) -> Callable[..., Any]:
    """Returns the step of a problem; None: that of the method's problem."""
    method, asked = self._method, problem or self._method.problem

    def predict(params, memory, batch):
      readings = method.predict(params, memory, _without_hidden(batch, asked))
      return {"": readings[""]} if problem else readings

    observe = (lambda *_: {}) if problem else method.observe
    return steps.make_evaluate_step(predict, asked.measure, observe)

  def _step(self, problem: Problem | None) -> Any:
    kind = f"/{type(problem).__name__.lower()}" if problem else ""
    return self._compiled(
      f"evaluate{kind}",
      self._fn(problem),
      out_shardings=sharding.replicated(self._mesh),
    )

  def _constants(self, test_set: scenarios.TestSet) -> dict[str, jax.Array]:
    problem = self._problem(test_set)
    constants = problem.constants(test_set.classes, self._num_classes)
    return jax.device_put(constants, sharding.replicated(self._mesh))

  def _batches(self, name, test_set, state, data):
    known = self._fixed.setdefault(name, []) if self._has_fixed else None
    batches = data.sweep(
      test_set.subset, augment=test_set.augment, what=f"measuring {name}"
    )
    for number, batch in enumerate(batches):
      batch = sharding.place_batch(batch, self._mesh)
      if known is None:
        yield batch
        continue
      if number == len(known):
        given = _without_hidden(batch, self._problem(test_set))
        known.append(self._precompute(state.params, state.memory, given))
      yield {**batch, **known[number]}

  def measure(
    self,
    state: Any,
    test_sets: Mapping[str, scenarios.TestSet],
    data: stage_data.StageData,
    *,
    stop: Callable[[], bool],
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measures a model.

    Args:
      state: Of the run.
      test_sets: Name -> test set.
      data: Reads the images.
      stop: Called after each batch; True stops.

    Returns:
      {test set: {reading: metrics}} and {test set: {name: counts}}.

    Raises:
      stage_data.Stopped: `stop` returned True.
    """
    row, observed = {}, {}
    for name, test_set in test_sets.items():
      step, problem = self._step(test_set.problem), self._problem(test_set)
      constants, batches = self._constants(test_set), []
      for batch in self._batches(name, test_set, state, data):
        batches.append(step(state.params, state.memory, batch, constants))
        # Fetch one batch late: the device stays busy, and holds at most the
        # measures of two batches.
        batches[-2:-1] = jax.device_get(batches[-2:-1])
        if stop():
          raise stage_data.Stopped
      batches[-1] = jax.device_get(batches[-1])
      row[name] = {
        reading: problem.summarize([b["measures"][reading] for b in batches])
        for reading in batches[0]["measures"]
      }
      observed[name] = {
        key: np.sum([b["observed"][key] for b in batches], axis=0).tolist()
        for key in batches[0]["observed"]
      }
    return row, observed


def _without_hidden(
  batch: Mapping[str, Any], problem: Problem
) -> dict[str, Any]:
  return {name: x for name, x in batch.items() if name not in problem.hidden}
