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


def _percent(value: float | None) -> str:
  return "" if value is None else f"{100 * value:.1f}"


def run_table(record: Mapping[str, Any]) -> table.Table:
  """Returns one run: accuracy of each task after each task, and summaries."""
  matrix, rows = record["matrix"]["accuracy"], record["summary"]["accuracy"]
  out = table.Table(
    title=f"{record['name']}: accuracy (%), after each task",
    box=box.SIMPLE_HEAD,
    title_style="bold",
  )
  out.add_column("after task", justify="right")
  for task in range(len(matrix)):
    out.add_column(f"task {task}", justify="right")
  out.add_column("avg_acc", justify="right", style="bold")
  out.add_column("forgetting", justify="right")
  for j, row in enumerate(rows):
    accuracies = [matrix[i][j] if i <= j else None for i in range(len(matrix))]
    out.add_row(
      str(j),
      *map(_percent, accuracies),
      _percent(row["avg_acc"]),
      _percent(row.get("forgetting")),
    )
  return out


def summary_table(records: Sequence[Mapping[str, Any]]) -> table.Table:
  """Returns runs beside each other: final accuracies and summaries."""
  tasks = max(len(r["matrix"]["accuracy"]) for r in records)
  out = table.Table(
    title="After the last task (%)", box=box.SIMPLE_HEAD, title_style="bold"
  )
  out.add_column("run")
  for task in range(tasks):
    out.add_column(f"task {task}", justify="right")
  out.add_column("avg_acc", justify="right", style="bold")
  out.add_column("forgetting", justify="right")
  out.add_column("curve mean", justify="right")
  out.add_column("avg_acc by vote", justify="right")
  out.add_column("seconds", justify="right")
  for record in records:
    final, matrix = record["final"], record["matrix"]["accuracy"]
    voted = record["summary"].get("accuracy_batchwise")
    out.add_row(
      record["name"],
      *(_percent(row[-1]) for row in matrix),
      _percent(final["avg_acc"]),
      _percent(final.get("forgetting")),
      _percent(final["curve_mean_acc"]),
      _percent(voted[-1]["avg_acc"]) if voted else "",
      f"{record['wall_seconds']:.0f}",
    )
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
