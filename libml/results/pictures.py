"""Pictures for TensorBoard, drawn with matplotlib."""

import io
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np


def pixels(figure: Any) -> np.ndarray:
  """Returns a matplotlib figure as uint8 [1, H, W, 3]."""
  from PIL import Image

  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", bbox_inches="tight")
  return np.asarray(Image.open(buffer).convert("RGB"))[None]


def matrix(
  values: np.ndarray, title: str, *, rows: Sequence[str], columns: Sequence[str]
) -> Any:
  """Draws a metric of test sets (rows) after stages (columns).

  Args:
    values: [T, S], from 0 to 1; NaN stays empty.
    title: Above the drawing.
    rows: One name per test set, [T].
    columns: One name per stage, [S].
  """
  height, width = values.shape
  # Inches for the cells; bbox_inches="tight" adds room for names when saving.
  figure, axes = _blank(0.5 * width, 0.5 * height)
  draw_matrix(axes, values, rows, columns)
  axes.set_title(title, fontsize=10)
  axes.set_xlabel("after")
  axes.tick_params(axis="x", rotation=90)
  return figure


def draw_matrix(
  axes: Any, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> None:
  """Draws shares as coloured cells with their value in percent.

  Args:
    axes: Of matplotlib, empty.
    values: [R, C], from 0 to 1; NaN stays empty.
    rows: One name per row, [R].
    columns: One name per column, [C].
  """
  height, width = values.shape
  axes.imshow(100 * values, vmin=0, vmax=100, cmap="viridis")
  for (i, j), value in np.ndenumerate(100 * values):
    if not np.isnan(value):
      color = "white" if value < 60 else "black"
      text = f"{value:.0f}"
      axes.text(j, i, text, ha="center", va="center", fontsize=9, color=color)
  axes.set_xticks(range(width), columns)
  axes.set_yticks(range(height), rows)


def bars(values: Mapping[str, float], title: str) -> Any:
  """Draws a horizontal bar for each name, the first at the top.

  A value of exactly 0 is labelled "exactly 0".

  Args:
    values: Name -> number; at least one.
    title: Above the drawing.
  """
  figure, axes = _blank(4.0, 0.28 * len(values))
  names = [name.replace("_", " ") for name in values]
  heights = list(values.values())
  axes.barh(range(len(values)), heights, color="tab:blue", height=0.7)
  for i, value in enumerate(heights):
    label = f" {value:.3g}" if value else " exactly 0"
    axes.text(value, i, label, va="center", fontsize=9)
  axes.set_xlim(1.25 * min(*heights, 0.0), 1.25 * max(*heights, 1e-12))
  axes.set_yticks(range(len(values)), names)
  axes.invert_yaxis()
  axes.spines[["top", "right"]].set_visible(False)
  axes.set_title(title, fontsize=10)
  return figure


def curve(columns: Mapping[str, Sequence[float]], title: str) -> Any:
  """Draws y in [0, 1] over x on a logarithmic axis.

  Args:
    columns: Two entries, name -> values: x, ascending and above 0, then y.
    title: Above the drawing.
  """
  figure, axes = _blank(4.0, 3.0)
  (x_name, x), (y_name, y) = columns.items()
  axes.plot(x, y, color="tab:blue")
  axes.set_xscale("log")
  axes.set_xlim(x[0], x[-1])
  axes.set_ylim(0, 1.02)
  axes.set_xlabel(x_name.replace("_", " "))
  axes.set_ylabel(y_name.replace("_", " "))
  axes.grid(alpha=0.3)
  axes.spines[["top", "right"]].set_visible(False)
  axes.set_title(title, fontsize=10)
  return figure


def _blank(width: float, height: float) -> tuple[Any, Any]:
  """Returns a figure of this size in inches, and the axes that fill it."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), dpi=110)
  FigureCanvasAgg(figure)
  return figure, figure.add_axes((0, 0, 1, 1))
