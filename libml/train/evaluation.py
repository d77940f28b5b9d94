"""Measuring a model on the probes of a stage."""

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
      jax.eval_shape(
        self._fn(probe.problem),
        state.params,
        state.memory,
        {**batch, **fixed},
        self._allowed(probe),
      )

  def _fn(self, problem: Problem | None) -> Callable[..., Any]:
    """Returns the step of the method's problem (None) or another one."""
    method = self._method
    if problem is None:
      return steps.make_evaluate_step(
        method.predict, method.problem.measure, method.observe
      )

    def predict(params, memory, batch):
      readings = method.predict(params, memory, _unlabelled(batch))
      return {"": readings[""]}

    return steps.make_evaluate_step(predict, problem.measure, lambda *_: {})

  def _step(self, problem: Problem | None) -> Any:
    kind = f"/{type(problem).__name__.lower()}" if problem else ""
    return self._compiled(
      f"evaluate{kind}",
      self._fn(problem),
      out_shardings=sharding.replicated(self._mesh),
    )

  def _allowed(self, probe: scenarios.Probe) -> jax.Array:
    allowed = np.isin(np.arange(self._num_classes), probe.classes)
    return jax.device_put(allowed, sharding.replicated(self._mesh))

  def _batches(self, name, probe, state, data):
    known = self._fixed.setdefault(name, []) if self._has_fixed else None
    batches = data.sweep(probe.subset, augment=probe.augment)
    for number, batch in enumerate(batches):
      batch = sharding.place_batch(batch, self._mesh)
      if known is None:
        yield batch
        continue
      if number == len(known):
        given = _unlabelled(batch) if probe.problem else batch
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
      step = self._step(probe.problem)
      problem = probe.problem or self._method.problem
      allowed, batches = self._allowed(probe), []
      for batch in self._batches(name, probe, state, data):
        batches.append(step(state.params, state.memory, batch, allowed))
        if stop():
          raise stage_data.Stopped
      batches = jax.device_get(batches)
      row[name] = {
        reading: problem.report([b["measures"][reading] for b in batches])
        for reading in batches[0]["measures"]
      }
      observed[name] = {
        key: np.sum([b["observed"][key] for b in batches], axis=0).tolist()
        for key in batches[0]["observed"]
      }
    return row, observed


def _unlabelled(batch: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in batch.items() if name != "label"}
