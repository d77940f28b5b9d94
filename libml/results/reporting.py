"""What a person sees of a run: TensorBoard, a progress bar, log lines."""

import logging
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from libml import scenarios
from libml.results import pictures

_LOG = logging.getLogger("palimpsest")


class Window:
  """Step metrics that still lie on the device, until someone reads them."""

  def __init__(self, stage: int):
    self._stage = stage
    self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
    self._mean: dict[str, float] = {}

  def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Keeps one step's metrics without waiting for them."""
    self._pending.append((step, metrics))

  def read(self) -> dict[str, float]:
    """Returns the means since the last read.

    Raises:
      FloatingPointError: A value is not finite.
    """
    pending, self._pending = jax.device_get(self._pending), []
    for step, metrics in pending:
      bad = {k: float(v) for k, v in metrics.items() if not np.isfinite(v)}
      if bad:
        raise FloatingPointError(
          f"Step {step + 1}, in stage {self._stage + 1}: {bad}. The run stops; "
          "the last good checkpoint is kept. Lower the learning rate, or clip "
          "the gradient, in a new workdir."
        )
    if pending:
      self._mean = {
        name: float(np.mean([m[name] for _, m in pending]))
        for name in pending[0][1]
      }
    return self._mean


class Reporter:
  """Writes metrics for people; on one process, for all."""

  def __init__(
    self, workdir: pathlib.Path, *, total_stages: int, quiet: bool = False
  ):
    from clu import metric_writers  # pulls in TensorFlow

    self._stages = total_stages
    chief = jax.process_index() == 0 and not quiet
    self._writer = (
      metric_writers.AsyncMultiWriter(
        [metric_writers.SummaryWriter(str(workdir))]
      )
      if chief
      else None
    )
    self._bar = None
    if chief and sys.stderr.isatty():
      from rich import progress

      self._bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("loss {task.fields[loss]:.3f}"),
        transient=True,
      )
      self._bar.start()
      self._task = self._bar.add_task("", total=None, loss=math.nan)

  def hparams(self, config: Mapping[str, Any]) -> None:
    """Writes the hyper-parameters, flat."""
    if self._writer:
      self._writer.write_hparams(_flat(config))

  def train(
    self,
    step: int,
    stage: scenarios.Stage,
    done: int,
    total: int,
    means: Mapping[str, float],
  ) -> None:
    """Writes a point of the training curves."""
    if not self._writer:
      return
    self._writer.write_scalars(
      step,
      {
        **{
          n if n.startswith("train") else f"train/{n}": v
          for n, v in means.items()
        },
        "task_id": stage.index,
      },
    )
    label = f"stage {stage.index + 1}/{self._stages}"
    if self._bar:
      self._bar.update(
        self._task,
        description=label,
        completed=done,
        total=total,
        loss=means["loss"],
      )
    else:
      _LOG.info("%s, step %d/%d: %s", label, done, total, _line(means))

  def measured(self, step: int, record: Mapping[str, Any]) -> None:
    """Writes what was measured last, under L2P's tags.

    The horizontal axis counts stages, so that runs of other lengths compare.

    Args:
      step: Stages finished; 0: before the first.
      record: The results so far.
    """
    if not self._writer or not record["probes"][-1]:
      return
    figure, scalars, summaries = record["figure"], {}, {}
    for key, rows in record["summary"].items():
      suffix = key.removeprefix(figure)
      summaries.update({f"{n}{suffix}": v for n, v in rows[-1].items()})
      matrix = np.asarray(record["matrix"][key], float)
      drawing = pictures.matrix(
        matrix,
        f"{key} (%)",
        rows=[p.replace("_", " ") for p in record["axes"]["probe"]],
        columns=record["axes"]["stage_name"],
      )
      self._writer.write_images(
        step, {f"matrix{suffix}": pictures.pixels(drawing)}
      )
    for probe, readings in record["probes"][-1].items():
      task = probe.removeprefix("task_")
      for suffix, figures in readings.items():
        numbers, curves = _parted(figures, f"_{task}{suffix}")
        scalars.update(numbers)
        for tag, columns in curves.items():
          drawing = pictures.curve(columns, tag.replace("_", " "))
          self._writer.write_images(step, {tag: pictures.pixels(drawing)})
    report = record["reports"][-1] if step and record["reports"] else {}
    for name, values in report.items():
      if isinstance(values, Mapping):
        title = f"{name.replace('_', ' ')}, {record['axes']['stage_name'][-1]}"
        drawing = pictures.bars(values, title)
        self._writer.write_images(step, {name: pictures.pixels(drawing)})
      else:
        scalars[name] = values
    audit = record["audits"][-1] if step and record["audits"] else {}
    audits = {k: v for k, v in _flat(audit, "audit/").items() if _is_number(v)}
    self._writer.write_scalars(step, {**scalars, **summaries, **audits})
    for probe, counts in record["observed"][-1].items():
      for name, values in counts.items():
        ids = np.repeat(np.arange(len(values)), values)
        if ids.size:
          self._writer.write_histograms(
            step,
            {f"{name}/{probe}": ids},
            num_buckets={f"{name}/{probe}": len(values)},
          )
    self._writer.flush()
    label = f"stage {step}/{self._stages}" if step else "before"
    _LOG.info("%s, measured: %s", label, _line(summaries))
    for probe, readings in record["probes"][-1].items():
      numbers, curves = _parted(readings.get("", {}))
      if curves:  # and so figures that no summary has
        _LOG.info("%s, %s: %s", label, probe, _line(numbers))

  def close(self) -> None:
    """Ends the bar and flushes what was written."""
    if self._bar:
      self._bar.stop()
    if self._writer:
      self._writer.close()


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _parted(
  figures: Mapping[str, Any], suffix: str = ""
) -> tuple[dict[str, float], dict[str, Any]]:
  """Returns a probe's numbers and its curves, by tag."""
  numbers, curves = {}, {}
  for name, value in figures.items():
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
