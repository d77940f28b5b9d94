"""results.json: what a run found, and what is needed to reproduce it."""

import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from libml import scenarios
from libml.devices import processes
from models import checksums

_PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "tensorflow-cpu",
  "tensorflow-datasets",
  "ml_collections",
  "clu",
  "numpy",
  "scikit-learn",
  "matplotlib",
  "pillow",
)


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that affect results."""
  found = {"python": platform.python_version()}
  for package in _PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      pass
  return found


def devices(mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """Returns kind and number of the devices that a run computes on."""
  return {
    "platform": mesh.devices.flat[0].platform,
    "kind": mesh.devices.flat[0].device_kind,
    "count": mesh.devices.size,
    "processes": jax.process_count(),
    "mesh": dict(mesh.shape),
  }


def facts(
  config: Mapping[str, Any],
  *,
  weights: Mapping[str, Any],
  data: Mapping[str, Any],
  scenario: scenarios.Scenario,
  parameters: Mapping[str, int],
  mesh: jax.sharding.Mesh,
) -> dict[str, Any]:
  """Returns the entries of results.json that are known before the first step.

  Args:
    config: As plain data; its batch_size is that over all devices.
    weights: Name and checksum of the weights that the run starts from.
    data: Name, origin, counts and checksums of the images.
    scenario: The stages.
    parameters: How many there are, and how many are trained.
    mesh: Of the devices.

  Raises:
    ValueError: Weights, data or packages differ between processes.
  """
  data = {**data, "holdout": config["holdout"]}
  shared = {"weights": weights, "data": data, "versions": versions()}
  processes.check_same("weights, data or packages", shared)
  return {
    "name": config["name"],
    "global_batch_size": config["batch_size"],
    "seeds": {"run": config["seed"], **scenario.seeds},
    "weights": weights,
    "data": data,
    "scenario": dict(scenario.description),
    "classes": list(scenario.class_names),
    "parameters": parameters,
    "versions": shared["versions"],
    "devices": devices(mesh),
    "config": config,
  }


def assemble(
  scenario: scenarios.Scenario,
  progress: Any,
  facts: Mapping[str, Any],
  metric: str,
) -> dict[str, Any]:
  """Returns the record of a run so far.

  Args:
    scenario: Its stages, and how to summarize them.
    progress: How far the run is, with each stage's metrics.
    facts: As `facts` returns them.
    metric: Name of the problem's metric.

  Returns:
    "matrix": {metric and reading: R[t][s], of test set t after measured stage
    s; None: not measured}; "axes": {"test_set": names of t, "stage": numbers of
    s, from 0, "stage_name": their names}; "summary": {metric and reading: a
    dict for each measured stage}; "figure": the metric's name; "final": the
    main reading's last summary; "test_sets": all metrics of each stage;
    "observed", "reports" and "audits": one entry for each stage;
    "stage_seconds" and "wall_seconds": in seconds; "examples_per_second": in
    training. What was measured before the first stage is stage -1, "before".
  """
  rows = progress.rows
  first = -1 if scenario.before else 0
  # A stage may have no test sets.
  numbers = [number for number, row in enumerate(rows, first) if row]
  measured = [rows[number - first] for number in numbers]
  names = {i: s.name or f"stage {i}" for i, s in enumerate(scenario.stages)}
  names[-1] = "before"
  matrix, summary = _summed_up(scenario, measured, metric)
  seconds = progress.seconds
  trained = seconds["timed_batches"] * facts["global_batch_size"]
  return {
    "finished": progress.stage == len(scenario.stages),
    "stages_done": progress.stage,
    "stages": len(scenario.stages),
    **facts,
    "matrix": matrix,
    "axes": {
      "test_set": list(scenario.measured_test_sets(measured)),
      "stage": numbers,
      "stage_name": [names[n] for n in numbers],
    },
    "summary": summary,
    "figure": metric,
    "final": summary[metric][-1] if measured else {},
    "test_sets": list(rows),
    "observed": list(progress.observed),
    "reports": list(progress.reports),
    "audits": list(progress.audits),
    "stage_seconds": [round(s, 1) for s in progress.stage_seconds],
    "train_steps": progress.steps,
    "compiled_steps": dict(progress.compiled),
    "wall_seconds": round(seconds["run"], 1),
    "examples_per_second": (
      round(trained / seconds["train"], 1) if seconds["train"] else None
    ),
  }


def _summed_up(
  scenario: scenarios.Scenario, rows: Sequence[scenarios.Row], metric: str
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns `assemble`'s "matrix" and "summary" of the measured rows."""
  matrix, summary = {}, {}
  for reading in next(iter(rows[-1].values())) if rows else ():
    key = f"{metric}{reading}"
    grid = scenario.matrix(rows, reading, metric)
    matrix[key] = [[None if np.isnan(x) else float(x) for x in r] for r in grid]
    summary[key] = [
      scenario.summarize(rows[: i + 1], reading, metric)
      for i in range(len(rows))
    ]
  return matrix, summary


def report(method: Any, state: Any) -> dict[str, Any]:
  """Returns `Method.report` with Python's numbers in place of arrays."""

  def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
      return {name: plain(part) for name, part in value.items()}
    return value.item() if hasattr(value, "item") else value

  return plain(method.report(state))


def write(path: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Writes JSON atomically, in process 0 only."""
  if jax.process_index():
    return
  draft = path.with_suffix(".tmp")
  draft.write_text(json.dumps(record, indent=2) + "\n")
  os.replace(draft, path)


def write_edit(
  workdir: pathlib.Path,
  stage: scenarios.Stage,
  edit: Mapping[str, Any],
  *,
  weights: int,
) -> None:
  """Writes what a stage did to the weights: edits/stage_T.npz, atomically.

  Args:
    workdir: Of the run.
    stage: Its classes to forget are saved as "classes".
    edit: Name -> array.
    weights: Checksum of the weights that the run does not change.
  """
  if jax.process_index():
    return
  folder = workdir / "edits"
  folder.mkdir(exist_ok=True)
  path = folder / f"stage_{stage.index}.npz"
  draft = path.with_suffix(".tmp")
  classes = np.asarray(stage.classes.get("forget", ()), np.int32)
  with draft.open("wb") as file:
    np.savez(file, allow_pickle=False, classes=classes, **edit)
  os.replace(draft, path)
  checksums.note(folder, path.name, weights=weights)


class Damaged(ValueError):
  """A file of results cannot be read."""


def read(path: pathlib.Path) -> dict[str, Any] | None:
  """Returns the record in a file; None: there is no file.

  Raises:
    Damaged: The file is no record of a run.
  """
  if not path.exists():
    return None
  try:
    record = json.loads(path.read_text())
    if not isinstance(record, dict) or not record:
      raise ValueError("it is no record of a run")
  except ValueError as error:
    raise Damaged(f"The results in {path} cannot be read ({error})") from None
  return record


def check_readable(record: Mapping[str, Any], path: pathlib.Path) -> None:
  """Refuses a record that an earlier version wrote.

  Raises:
    ValueError: The record lacks the test sets.
  """
  if "test_sets" not in record:
    raise ValueError(
      f"{path} has no entry 'test_sets': an earlier version wrote it. Read it "
      "with that version, or run again with another --workdir."
    )
