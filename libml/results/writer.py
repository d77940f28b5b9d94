"""Metrics of a run: TensorBoard's files, and a log line per measured stage."""

import functools
import logging
import pathlib
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from libml import scenarios
from libml.results import cells
from libml.results import pictures

_LOG = logging.getLogger("palimpsest")


class Window:
  """Metrics of steps, which stay on the devices until they are read."""

  def __init__(self, stage: int):
    self._stage = stage
    self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
    self._mean: dict[str, float] = {}

  def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Keeps the metrics of a step without waiting for their values."""
    self._pending.append((step, metrics))

  def read(self) -> dict[str, float]:
    """Returns the mean of each metric over the steps since the last read.

    Raises:
      FloatingPointError: A value is not finite.
    """
    pending, self._pending = jax.device_get(self._pending), []
    for step, metrics in pending:
      bad = {k: float(v) for k, v in metrics.items() if not np.isfinite(v)}
      if bad:
        raise FloatingPointError(
          f"Step {step + 1}, in stage {self._stage + 1}, gave values that are "
          f"not finite: {bad}. The run stops; the last good checkpoint stays. "
          "Lower the learning rate or clip the gradient, and start again with "
          "a new --workdir."
        )
    if pending:
      self._mean = {
        name: float(np.mean([m[name] for _, m in pending]))
        for name in pending[0][1]
      }
    return self._mean


def _writes(method: Callable[..., None]) -> Callable[..., None]:
  """Turns what clu raises where it cannot write into one OSError."""

  @functools.wraps(method)
  def written(self, *args: Any) -> None:
    from clu import asynclib

    try:
      method(self, *args)
    except asynclib.AsyncError as error:
      reason = str(error.__cause__ or error).splitlines()[0].rpartition("} ")[2]
      raise OSError(
        f"TensorBoard's file in {self._workdir} cannot be written; the last "
        "checkpoint is kept, and the same command goes on from it. Make room "
        f"on the disk, or allow writing there. ({reason[:300]})"
      ) from error

  return written


class Writer:
  """Writes metrics to TensorBoard and to the log, in process 0 only.

  Its methods raise OSError where TensorBoard's file cannot be written.
  """

  def __init__(
    self, workdir: pathlib.Path, *, total_stages: int, quiet: bool = False
  ):
    from clu import metric_writers  # imports TensorFlow

    self._stages = total_stages
    self._workdir = workdir
    chief = jax.process_index() == 0 and not quiet
    self._tensorboard = (
      metric_writers.AsyncMultiWriter(
        [metric_writers.SummaryWriter(str(workdir))]
      )
      if chief
      else None
    )

  @_writes
  def hparams(self, config: Mapping[str, Any]) -> None:
    """Writes the config as TensorBoard's hyperparameters, "section.key"."""
    if self._tensorboard:
      self._tensorboard.write_hparams(_flat(config))

  @_writes
  def train(
    self, step: int, stage: scenarios.Stage, means: Mapping[str, float]
  ) -> None:
    """Writes a point of the training curves.

    Args:
      step: Steps taken in the run.
      stage: The stage in training.
      means: Name -> mean since the last point.
    """
    if not self._tensorboard:
      return
    scalars = {
      name if name.startswith("train") else f"train/{name}": value
      for name, value in means.items()
    }
    self._tensorboard.write_scalars(step, {**scalars, "task_id": stage.index})

  @_writes
  def measured(self, step: int, record: Mapping[str, Any]) -> None:
    """Writes what was measured last, under L2P's tags.

    The horizontal axis counts stages, so that runs of different lengths can be
    compared.

    Args:
      step: Stages finished; 0: before the first.
      record: The results so far.
    """
    if not self._tensorboard or not record["test_sets"][-1]:
      return
    summaries = _summaries(record)
    numbers, drawings = _last_metrics(record)
    report = record["reports"][-1] if step and record["reports"] else {}
    told, drawn = _report(report, record["axes"]["stage_name"][-1])
    audit = record["audits"][-1] if step and record["audits"] else {}
    audits = {
      k: v for k, v in _flat(audit, "audit/").items() if cells.is_number(v)
    }
    images = {**_matrices(record), **drawings, **drawn}
    for tag, drawing in images.items():
      self._tensorboard.write_images(step, {tag: pictures.pixels(drawing)})
    others = {**numbers, **summaries, **audits}
    told = {f"report/{k}" if k in others else k: v for k, v in told.items()}
    scalars = {**others, **told}
    self._tensorboard.write_scalars(step, scalars)
    for tag, counts in _counts(record).items():
      ids = np.repeat(np.arange(len(counts)), counts)
      buckets = {tag: len(counts)}
      self._tensorboard.write_histograms(step, {tag: ids}, num_buckets=buckets)
    self._tensorboard.flush()
    label = f"stage {step}/{self._stages}" if step else "before"
    plain = record["summary"][record["figure"]][-1]
    _LOG.info("%s, measured: %s", label, _line(plain))
    for test_set, readings in record["test_sets"][-1].items():
      numbers, curves = _parted(readings.get("", {}))
      if curves:  # such test sets have metrics that no summary has
        _LOG.info("%s, %s: %s", label, test_set, _line(numbers))

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    try:
      self.close()
    except OSError:
      if error is None:  # else the first error says it
        raise

  @_writes
  def close(self) -> None:
    """Flushes and closes TensorBoard's file."""
    if self._tensorboard:
      self._tensorboard.close()


def _suffix(record: Mapping[str, Any], key: str) -> str:
  """Returns the end of a reading's tags: its key without the metric's name."""
  return key.removeprefix(record["figure"])


def _summaries(record: Mapping[str, Any]) -> dict[str, float]:
  """Returns each reading's last summary, by tag."""
  return {
    f"{name}{_suffix(record, key)}": value
    for key, rows in record["summary"].items()
    for name, value in rows[-1].items()
  }


def _matrices(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a drawing of each reading's matrix, by tag."""
  return {
    f"matrix{_suffix(record, key)}": pictures.matrix(
      np.asarray(matrix, float),
      f"{key} (%)",
      rows=[t.replace("_", " ") for t in record["axes"]["test_set"]],
      columns=record["axes"]["stage_name"],
    )
    for key, matrix in record["matrix"].items()
  }


def _last_metrics(
  record: Mapping[str, Any],
) -> tuple[dict[str, float], dict[str, Any]]:
  """Returns tag -> number and tag -> drawing of the last measured stage."""
  numbers, drawings = {}, {}
  for test_set, readings in record["test_sets"][-1].items():
    task = test_set.removeprefix("task_")
    for suffix, metrics in readings.items():
      found, curves = _parted(metrics, f"_{task}{suffix}")
      numbers.update(found)
      for tag, columns in curves.items():
        drawings[tag] = pictures.curve(columns, tag.replace("_", " "))
  return numbers, drawings


def _counts(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns tag -> counts of the last measured stage, if any is above 0."""
  return {
    f"{name}/{test_set}": counts
    for test_set, found in record["observed"][-1].items()
    for name, counts in found.items()
    if any(counts)
  }


def _report(
  report: Mapping[str, Any], stage: str
) -> tuple[dict[str, float], dict[str, Any]]:
  """Returns the numbers and the drawings of `Method.report`, by their names.

  Args:
    report: Of the last stage.
    stage: Its name.
  """
  numbers = {k: v for k, v in report.items() if cells.is_number(v)}
  drawings = {
    name: pictures.bars(values, f"{name.replace('_', ' ')}, {stage}")
    for name, values in report.items()
    if isinstance(values, Mapping) and values
  }
  return numbers, drawings


def _parted(
  metrics: Mapping[str, Any], suffix: str = ""
) -> tuple[dict[str, float], dict[str, Any]]:
  """Returns a test set's numbers and its curves, by tag."""
  numbers, curves = {}, {}
  for name, value in metrics.items():
    if name != "count":
      tag = f"{'eval_loss' if name == 'loss' else name}{suffix}"
      (curves if isinstance(value, Mapping) else numbers)[tag] = value
  return numbers, curves


def _line(scalars: Mapping[str, float]) -> str:
  return ", ".join(f"{name} {value:.4g}" for name, value in scalars.items())


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat.update(_flat(value, f"{prefix}{key}."))
    elif isinstance(value, int | float | str | bool):
      flat[prefix + key] = value
    else:
      flat[prefix + key] = str(value)
  return flat
