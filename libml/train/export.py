"""The export of a finished run."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from libml import trees
from libml.devices import processes
from libml.devices import sharding
from libml.train import resume
from libml.train.train_state import TrainState
from models import export


def write(
  workdir: pathlib.Path,
  run: Any,
  state: TrainState,
  *,
  config: Mapping[str, Any],
  mesh: jax.sharding.Mesh,
) -> None:
  """Writes a run's model for use elsewhere; all processes must call it.

  Args:
    workdir: Of the run; the export is its folder "export".
    run: The run, for its method and scenario.
    state: After the last stage, on the mesh.
    config: Of the run, as plain data.
    mesh: Of the devices.
  """
  weights = resume.frozen(state, run.changing(state))
  params = trees.without(state.params, run.method.private)
  params = sharding.to_host(params, mesh)
  if processes.is_first():
    export.write(
      workdir / "export",
      model=run.method.model,
      params=params,
      config=config,
      classes=run.scenario.class_names or None,
      forgotten=run.scenario.forgotten,
      weights=weights,
    )
