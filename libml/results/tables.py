"""Results as text tables: `python -m libml.results.tables DIR [DIR ...]`."""

import pathlib
import sys
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from rich import box
from rich import console
from rich import table

from libml.results import audit_table
from libml.results import results

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
  "learn": ("", "acc_learn"),
  "forget": ("", "acc_forget"),
  "retain": ("", "acc_retain"),
  "old": ("", "acc_old"),
  "missing": ("", "acc_missing"),
  "others": ("", "acc_others"),
  "H-mean": ("", "h_mean"),
  "of three": ("", "swap_mean"),
  "avg_acc": ("", "avg_acc"),
  "augmented": ("", "augmented_avg_acc"),
  "forgetting": ("", "forgetting"),
  "curve mean": ("", "curve_mean_acc"),
  "by vote": ("_batchwise", "avg_acc"),
}


def _summaries(
  records: Sequence[Mapping[str, Any]], stages: Sequence[int]
) -> dict[str, list[str]]:
  """Returns the columns of _SUMMARY, a cell each record and measured stage.

  A cell is empty where its figure is not defined; a column that would be empty
  is left out.
  """
  columns = {}
  for column, (suffix, name) in _SUMMARY.items():
    cells = []
    for record in records:
      rows = record["summary"].get(record["figure"] + suffix)
      cells += [_percent(rows[s].get(name) if rows else None) for s in stages]
    if any(cells):
      columns[column] = cells
  return columns


def _edits(record: Mapping[str, Any]) -> dict[str, list[str]]:
  """Returns what each stage's edit was, a cell each measured stage.

  Runs whose method tells nothing have no such columns.
  """
  columns: dict[str, list[str]] = {}
  for number in record["axes"]["stage"]:
    told = record["reports"][number] if number >= 0 else {}
    groups = f"{told['zero_groups']}/{told['groups']}" if told else ""
    weights = f"{told['touched_weights']:,}" if told else ""
    seconds = f"{record['stage_seconds'][number]:.0f}" if told else ""
    columns.setdefault("zero", []).append(groups)
    columns.setdefault("touched", []).append(weights)
    columns.setdefault("s", []).append(seconds)
  return columns if any(columns.get("s", ())) else {}


def _swaps(record: Mapping[str, Any]) -> bool:
  """Whether a run measures what it learns apart from what it forgets."""
  rows = record["summary"].get(record["figure"])
  return bool(rows) and "acc_learn" in rows[-1]


def run_table(record: Mapping[str, Any]) -> table.Table:
  """Returns one run: accuracy of each probe after each stage, and summaries.

  A single probe has no column: its accuracy is avg_acc.
  """
  matrix = record["matrix"][record["figure"]]
  probes = [name.replace("_", " ") for name in record["axes"]["probe"]]
  stages = record["axes"]["stage_name"]
  many = len(probes) > _MOST_TASKS // 2
  named = any(":" in name for name in stages)
  if many or named:  # a number suffices, or the line grows too long
    for word in ("task ", "request ", "stage "):
      probes = [name.removeprefix(word) for name in probes]
      stages = [name.removeprefix(word) for name in stages]
  if _swaps(record):
    what = "before and after each stage"
  elif record["axes"]["stage"][0] < 0:
    what = "before and after each request"
  elif len(probes) > 1:
    what = "of each task after each task"
  else:
    what = "of all test images"
  out = _table(f"{record['name']}: accuracy (%) {what}")
  shown = range(len(probes)) if 1 < len(probes) <= _MOST_TASKS else range(0)
  summaries = {
    name: cells
    for name, cells in _summaries([record], range(len(stages))).items()
    if name not in probes
  }
  summaries.update(_edits(record))
  # Names of classes may be long: they wrap, figures do not.
  out.add_column(
    "after", justify="left" if named else "right", no_wrap=not named
  )
  _add_columns(out, [*(probes[i] for i in shown), *summaries])
  for j, stage in enumerate(stages):
    cells = [_percent(matrix[i][j], 0 if many else 1) for i in shown]
    out.add_row(stage, *cells, *(column[j] for column in summaries.values()))
  return out


def _over_requests(
  records: Sequence[Mapping[str, Any]],
) -> dict[str, list[str]]:
  """Returns what matters over all requests of a run, a cell each record.

  What is forgotten and what is kept count where they are worst.
  """
  columns: dict[str, list[str]] = {
    name: []
    for name in ("forget", "retain lost", "old", "missing", "H-mean", "zero")
  }
  for record in records:
    _, *rows = record["summary"][record["figure"]]
    told = [report for report in record["reports"] if report]
    zero = " ".join(str(r["zero_groups"]) for r in told)
    values = {
      "forget": max(row["acc_forget"] for row in rows),
      "retain lost": max(row["drop_retain"] for row in rows),
      "old": rows[-1].get("acc_old"),
      "missing": rows[-1].get("acc_missing"),
      "H-mean": sum(row["h_mean"] for row in rows) / len(rows),
    }
    for name, value in values.items():
      columns[name].append(_percent(value))
    columns["zero"].append(f"{zero} of {told[0]['groups']}" if told else "")
  return {name: cells for name, cells in columns.items() if any(cells)}


def summary_table(records: Sequence[Mapping[str, Any]]) -> table.Table:
  """Returns runs beside each other.

  Of runs that learn or swap, what is left after the last stage; of runs that
  forget, the worst request's accuracies on what goes and losses of what stays,
  what is left of earlier requests at the end, the mean H, and each request's
  number of groups that are exactly zero.
  """
  swaps = all(map(_swaps, records))
  if all(r["axes"]["stage"][0] < 0 for r in records) and not swaps:
    out, summaries = _table("Over all requests (%)"), _over_requests(records)
  else:
    out = _table(f"After the last {'stage' if swaps else 'task'} (%)")
    summaries = _summaries(records, [-1])
  seconds = [f"{record['wall_seconds']:.0f}" for record in records]
  summaries["seconds"] = seconds
  out.add_column("run", no_wrap=True)
  _add_columns(out, list(summaries))
  for i, record in enumerate(records):
    cells = (column[i] for column in summaries.values())
    out.add_row(record["name"], *cells)
  return out


def show(records: Sequence[Mapping[str, Any]]) -> None:
  """Prints the first run in full, audits, and all runs beside each other."""
  out = console.Console(width=None if sys.stdout.isatty() else 100)
  out.print(run_table(records[0]))
  for record in records:
    audit = record["audits"][-1] if record.get("audits") else {}
    if audit:
      out.print(audit_table.audit_table(audit, record["name"]))
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
