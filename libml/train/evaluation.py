"""Measuring a model on the probes of a stage."""

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
  """One compiled step a problem, and what is computed once for the probes."""

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
    self._has_fixed = False  # until `check` has seen a batch
    # Probe -> one dict of arrays on the mesh for each batch of its sweep.
    self._fixed: dict[str, list[dict[str, jax.Array]]] = {}

  def check(
    self,
    state: Any,
    data: stage_data.StageData,
    scenario: scenarios.Scenario,
  ) -> None:
    """Traces one batch a problem: what cannot work fails before training."""
    self._has_fixed = False
    probes: dict[Any, scenarios.Probe] = {}
    for stage in scenario.stages:
      for probe in stage.probes.values():
        probes.setdefault(type(probe.problem), probe)
    for probe in probes.values():
      batches = data.sweep(probe.subset, augment=probe.augment)
      batch = sharding.place_batch(next(batches), self._mesh)
      fixed = jax.eval_shape(
        self._method.precompute, state.params, state.memory, batch
      )
      self._has_fixed = bool(fixed)
      batch = {**batch, **fixed}
      jax.eval_shape(
        functools.partial(self._fn(probe.problem), state.params, state.memory),
        batch,
        self._constants(probe),
      )

  def _problem(self, probe: scenarios.Probe) -> Problem:
    return probe.problem or self._method.problem

  def _fn(self, problem: Problem | None) -> Callable[..., Any]:
    """Returns the step of the method's problem (None) or another one."""
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

  def _constants(self, probe: scenarios.Probe) -> dict[str, jax.Array]:
    problem = self._problem(probe)
    constants = problem.constants(probe.classes, self._num_classes)
    return jax.device_put(constants, sharding.replicated(self._mesh))

  def _batches(self, name, probe, state, data):
    known = self._fixed.setdefault(name, []) if self._has_fixed else None
    batches = data.sweep(probe.subset, augment=probe.augment)
    for number, batch in enumerate(batches):
      batch = sharding.place_batch(batch, self._mesh)
      if known is None:
        yield batch
        continue
      if number == len(known):
        given = _without_hidden(batch, self._problem(probe))
        known.append(self._precompute(state.params, state.memory, given))
      yield {**batch, **known[number]}

  def probe(
    self,
    state: Any,
    probes: Mapping[str, scenarios.Probe],
    data: stage_data.StageData,
    *,
    stop: Callable[[], bool],
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns ({probe: {reading: figures}}, {probe: {name: counts}}).

    Raises:
      stage_data.Stopped: `stop` said so between two batches.
    """
    row, observed = {}, {}
    for name, probe in probes.items():
      step, problem = self._step(probe.problem), self._problem(probe)
      constants, batches = self._constants(probe), []
      for batch in self._batches(name, probe, state, data):
        batches.append(step(state.params, state.memory, batch, constants))
        # Fetch one batch late: the device stays busy, and holds the measures of
        # two batches at most.
        batches[-2:-1] = jax.device_get(batches[-2:-1])
        if stop():
          raise stage_data.Stopped
      batches[-1] = jax.device_get(batches[-1])
      row[name] = {
        reading: problem.report([b["measures"][reading] for b in batches])
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
