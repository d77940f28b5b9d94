"""Results as one picture: `python -m libml.results.plot OUT.png DIR [DIR ...]`.

The suffix of OUT says its format: .png, .svg or .pdf.
"""

import argparse
import textwrap
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from libml.results import pictures
from libml.results import tables

# Inches of a cell, and of the names beside and below the cells.
_CELL = 0.55
_NAMES = (1.3, 1.6)


def draw(records: Sequence[Mapping[str, Any]]) -> Any:
  """Draws runs beside each other: their test sets (rows) after stages.

  Args:
    records: results.json of each run.

  Returns:
    A matplotlib figure.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  sizes = [_matrix(record).shape for record in records]
  widths = [columns * _CELL + _NAMES[0] for _, columns in sizes]
  height = max(rows for rows, _ in sizes) * _CELL + _NAMES[1]
  figure = Figure((sum(widths), height), dpi=150, layout="constrained")
  FigureCanvasAgg(figure)
  panels = figure.subplots(1, len(records), squeeze=False, width_ratios=widths)[
    0
  ]
  for axes, record in zip(panels, records, strict=True):
    _draw_run(axes, record)
  return figure


def _matrix(record: Mapping[str, Any]) -> np.ndarray:
  """Returns the metric of each test set after each measured stage, [T, S]."""
  return np.array(record["matrix"][record["figure"]], float)


def _draw_run(axes: Any, record: Mapping[str, Any]) -> None:
  """Draws one run: its name, its last summary, its cells."""
  stages = record["axes"]["stage_name"]
  rows = [_row_name(name, stages) for name in record["axes"]["test_set"]]
  pictures.draw_matrix(axes, _matrix(record), rows, stages)
  last = tables.summary_columns([record], [-1])
  told = ", ".join(f"{name} {cells[0]}" for name, cells in last.items())
  axes.set_title(
    "\n".join(textwrap.wrap(told, 12 * len(stages))), fontsize=8, loc="left"
  )
  axes.annotate(
    f"{record['name']}: {record['figure']} (%)",
    (0, 1),
    xytext=(0, 38),
    xycoords="axes fraction",
    textcoords="offset points",
    weight="bold",
  )
  axes.set_xticks(axes.get_xticks(), stages, rotation=40, ha="right")
  axes.tick_params(labelsize=8, length=0)
  axes.spines[:].set_visible(False)
  axes.set_anchor("N")
  for edge in range(1, len(stages)):
    axes.axvline(edge - 0.5, color="white", linewidth=2)
  for edge in range(1, len(rows)):
    axes.axhline(edge - 0.5, color="white", linewidth=2)


def _row_name(test_set: str, stages: Sequence[str]) -> str:
  """Returns a test set's name, with its classes where a stage names them."""
  name = test_set.replace("_", " ")
  found = [stage for stage in stages if stage.startswith(f"{name}:")]
  return found[0] if found else name


def main(argv: Sequence[str] | None = None) -> None:
  """Draws the runs of folders into a file.

  Raises:
    SystemExit: A folder without finished results.
  """
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("out", help="file to write: .png, .svg or .pdf")
  parser.add_argument("folders", nargs="+", help="workdirs of finished runs")
  args = parser.parse_args(argv)
  draw(tables.read(args.folders)).savefig(args.out)


if __name__ == "__main__":
  main()
