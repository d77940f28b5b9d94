"""Measuring a model on the probes of a stage."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from libml import scenarios
from libml import sharding
from libml import stage_data
from libml import steps


class Evaluator:
  """One compiled step for all probes, and what is computed once for them."""

  def __init__(
    self,
    method: Any,
    num_classes: int,
    mesh: jax.sharding.Mesh,
    compiled: steps.Compiled,
  ):
    self._method = method
    self._num_classes = num_classes
    self._mesh = mesh
    self._precompute = compiled("precompute", method.precompute)
    self._fn = steps.make_evaluate_step(
      method.predict, method.problem.measure, method.observe
    )
    self._step = compiled(
      "evaluate", self._fn, out_shardings=sharding.replicated(mesh)
    )
    # Probe -> one dict of arrays on the mesh for each batch of its sweep.
    self._fixed: dict[str, list[dict[str, jax.Array]]] = {}

  def check(
    self,
    state: Any,
    data: stage_data.StageData,
    scenario: scenarios.Scenario,
  ) -> None:
    """Traces one batch, so that what cannot work fails before training."""
    self._has_fixed = False
    probes = (p for stage in scenario.stages for p in stage.probes.values())
    for probe in probes:
      batches = data.sweep(probe.subset, augment=probe.augment)
      batch = sharding.place_batch(next(batches), self._mesh)
      fixed = jax.eval_shape(
        self._method.precompute, state.params, state.memory, batch
      )
      self._has_fixed = bool(fixed)
      jax.eval_shape(
        self._fn,
        state.params,
        state.memory,
        {**batch, **fixed},
        self._allowed(probe),
      )
      return

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
        known.append(self._precompute(state.params, state.memory, batch))
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
      allowed, batches = self._allowed(probe), []
      for batch in self._batches(name, probe, state, data):
        batches.append(self._step(state.params, state.memory, batch, allowed))
        if stop():
          raise stage_data.Stopped
      batches = jax.device_get(batches)
      row[name] = {
        reading: self._method.problem.report(
          [b["measures"][reading] for b in batches]
        )
        for reading in batches[0]["measures"]
      }
      observed[name] = {
        key: np.sum([b["observed"][key] for b in batches], axis=0).tolist()
        for key in batches[0]["observed"]
      }
    return row, observed
