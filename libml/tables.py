"""Results as text tables: `python -m libml.tables DIR [DIR ...]`."""

import pathlib
import sys
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from rich import box
from rich import console
from rich import table

from libml import results

# Wider than this the columns of tasks no longer fit a terminal's line.
_MOST_TASKS = 10


def _percent(value: float | None, digits: int = 1) -> str:
  return "" if value is None else f"{100 * value:.{digits}f}"


def _table(title: str) -> table.Table:
  return table.Table(
    title=title,
    title_style="bold",
    title_justify="left",
    box=box.SIMPLE_HEAD,
    padding=(0, 1, 0, 0),
  )


def _add_columns(out: table.Table, names: Sequence[str]) -> None:
  for name in names:
    out.add_column(name, justify="right", no_wrap=True)


# Column -> reading of a summary, and its figure there.
_SUMMARY = {
  "avg_acc": ("", "avg_acc"),
  "forgetting": ("", "forgetting"),
  "curve mean": ("", "curve_mean_acc"),
  "by vote": ("_batchwise", "avg_acc"),
}


def _summary(record: Mapping[str, Any], stage: int) -> list[str]:
  """Returns the cells of _SUMMARY after a stage; empty where undefined."""
  cells = []
  for suffix, name in _SUMMARY.values():
    rows = record["summary"].get(record["figure"] + suffix)
    cells.append(_percent(rows[stage].get(name) if rows else None))
  return cells


def run_table(record: Mapping[str, Any]) -> table.Table:
  """Returns one run: accuracy of each task after each task, and summaries."""
  matrix = record["matrix"][record["figure"]]
  tasks = range(len(matrix))
  digits = 1 if len(matrix) <= _MOST_TASKS // 2 else 0
  out = _table(f"{record['name']}: accuracy (%) of each task after each task")
  shown = tasks if len(matrix) <= _MOST_TASKS else range(0)
  label = "task {}" if digits else "{}"
  _add_columns(out, ["after", *map(label.format, shown), *_SUMMARY])
  for j in tasks:
    cells = [_percent(matrix[i][j], digits) if i <= j else "" for i in shown]
    out.add_row(label.format(j), *cells, *_summary(record, j))
  return out


def summary_table(records: Sequence[Mapping[str, Any]]) -> table.Table:
  """Returns runs beside each other: what is left after the last task."""
  out = _table("After the last task (%)")
  out.add_column("run", no_wrap=True)
  _add_columns(out, [*_SUMMARY, "seconds"])
  for record in records:
    seconds = f"{record['wall_seconds']:.0f}"
    out.add_row(record["name"], *_summary(record, -1), seconds)
  return out


def show(records: Sequence[Mapping[str, Any]]) -> None:
  """Prints the first run in full, and all of them beside each other."""
  out = console.Console(width=None if sys.stdout.isatty() else 100)
  out.print(run_table(records[0]))
  if len(records) > 1:
    out.print(summary_table(records))


def main(folders: Sequence[str]) -> None:
  """Reads the results.json of each folder and prints them.

  Raises:
    SystemExit: A folder without finished results.
  """
  records = []
  for folder in folders:
    record = results.read(pathlib.Path(folder) / "results.json")
    if record is None or not record["final"]:
      raise SystemExit(f"No results in {folder}; run main.py there first.")
    records.append(record)
  show(records)


if __name__ == "__main__":
  main(sys.argv[1:])
