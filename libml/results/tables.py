"""Results as text tables: `python -m libml.results.tables DIR [DIR ...]`."""

import pathlib
import sys
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from rich import box
from rich import console
from rich import table
from rich import text

from libml import problems
from libml.results import audit_table
from libml.results import cells as cells_lib
from libml.results import results

# Title of a stage's seconds.
_SECONDS = "s"

# More columns of tasks than this do not fit a terminal's width.
_MOST_TASKS = 10


def _table() -> table.Table:
  return table.Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _titled(title: str, shown: table.Table) -> console.Group:
  """Returns a table below its title; rich's own wraps at the table's width."""
  return console.Group(text.Text(title, style="bold"), shown)


def _add_columns(out: table.Table, names: Sequence[str]) -> None:
  for name in names:
    width = len(name)
    out.add_column(name, justify="right", no_wrap=True, min_width=width)


# Column -> reading of a summary, and its entry there; {} is the metric's name.
_SUMMARY = {
  "learn": ("", "{}_learn"),
  "forget": ("", "{}_forget"),
  "retain": ("", "{}_retain"),
  "old": ("", "{}_old"),
  "missing": ("", "{}_missing"),
  "others": ("", "{}_others"),
  "H-mean": ("", "h_mean"),
  "of three": ("", "swap_mean"),
  "avg_{}": ("", "avg_{}"),
  "augmented": ("", "augmented_avg_{}"),
  "forgetting": ("", "forgetting"),
  "curve mean": ("", "curve_mean_{}"),
  "by vote": ("_batchwise", "avg_{}"),
}


def summary_columns(
  records: Sequence[Mapping[str, Any]], stages: Sequence[int]
) -> dict[str, list[str]]:
  """Returns the columns of _SUMMARY, a cell for each record and stage.

  A cell is empty where its metric is not defined. Columns of empty cells are
  left out.

  Args:
    records: results.json of each run.
    stages: Numbers of measured stages; -1 is the last.
  """
  columns: dict[str, list[str]] = {}
  for column, (suffix, name) in _SUMMARY.items():
    for record in records:
      metric = record["figure"]
      short = problems.short(metric)
      rows = record["summary"].get(metric + suffix)
      columns.setdefault(column.format(short), []).extend(
        cells_lib.percent(rows[s].get(name.format(short)) if rows else None)
        for s in stages
      )
  return {column: cells for column, cells in columns.items() if any(cells)}


def _reported(
  record: Mapping[str, Any], taken: Collection[str]
) -> dict[str, list[str]]:
  """Returns the columns of a method's reports, a cell for each measured stage.

  The last column is the stage's seconds. There are no columns if the method
  reports nothing.

  Args:
    record: Of one run.
    taken: Titles of other columns.
  """
  found = cells_lib.columns(record["reports"], {*taken, _SECONDS})
  columns = {column.title: [] for column in found}
  seconds = []
  for number in record["axes"]["stage"]:
    told = record["reports"][number] if number >= 0 else {}
    for column in found:
      columns[column.title].append(column.cell(told))
    seconds += [f"{record['stage_seconds'][number]:.0f}" if told else ""]
  return {**columns, _SECONDS: seconds} if any(seconds) else {}


def _swaps(record: Mapping[str, Any]) -> bool:
  """Whether a run has a test set "learn", as only swaps do."""
  rows = record["summary"].get(record["figure"])
  return bool(rows) and f"{problems.short(record['figure'])}_learn" in rows[-1]


def _measured(record: Mapping[str, Any]) -> str:
  """Returns in words what a run's matrix holds: when, or of which images."""
  if _swaps(record):
    return "before and after each stage"
  if record["axes"]["stage"][0] < 0:
    return "before and after each request"
  if len(record["axes"]["test_set"]) > 1:
    return "of each task after each task"
  return "of all test images"


def run_table(record: Mapping[str, Any]) -> console.Group:
  """Returns one run: each test set's metric after each stage, and summaries.

  A single test set has no column: its metric is the summary's average.
  """
  metric = record["figure"]
  matrix = record["matrix"][metric]
  test_sets = [name.replace("_", " ") for name in record["axes"]["test_set"]]
  stages = record["axes"]["stage_name"]
  many = len(test_sets) > _MOST_TASKS // 2
  named = any(":" in name for name in stages)
  if many or named:  # whole names would make the line too long
    for word in ("task ", "request ", "stage "):
      test_sets = [name.removeprefix(word) for name in test_sets]
      stages = [name.removeprefix(word) for name in stages]
  out = _table()
  shown = (
    range(len(test_sets)) if 1 < len(test_sets) <= _MOST_TASKS else range(0)
  )
  summaries = {
    name: cells
    for name, cells in summary_columns([record], range(len(stages))).items()
    if name not in test_sets
  }
  summaries.update(_reported(record, {*test_sets, *summaries}))
  # Names of classes may be long: they wrap, numbers do not.
  out.add_column(
    "after", justify="left" if named else "right", no_wrap=not named
  )
  _add_columns(out, [*(test_sets[i] for i in shown), *summaries])
  for j, stage in enumerate(stages):
    cells = [cells_lib.percent(matrix[i][j], 0 if many else 1) for i in shown]
    out.add_row(stage, *cells, *(column[j] for column in summaries.values()))
  title = f"{record['name']}: {metric} (%) {_measured(record)}"
  return _titled(title, out)


def _over_requests(
  records: Sequence[Mapping[str, Any]],
) -> dict[str, list[str]]:
  """Returns the columns of runs that forget, a cell for each record.

  "forget" and "retain lost" are those of the worst request.
  """
  columns: dict[str, list[str]] = {}
  for record in records:
    _, *rows = record["summary"][record["figure"]]
    short = problems.short(record["figure"])
    values = {
      "forget": max(row[f"{short}_forget"] for row in rows),
      "retain lost": max(row["drop_retain"] for row in rows),
      "old": rows[-1].get(f"{short}_old"),
      "missing": rows[-1].get(f"{short}_missing"),
      "H-mean": sum(row["h_mean"] for row in rows) / len(rows),
    }
    for name, value in values.items():
      columns.setdefault(name, []).append(cells_lib.percent(value))
  everything = [report for record in records for report in record["reports"]]
  for part in cells_lib.columns(everything, columns):
    if part.total:
      cells = [part.over_stages(record["reports"]) for record in records]
      columns[part.title] = cells
  return {name: cells for name, cells in columns.items() if any(cells)}


def summary_table(records: Sequence[Mapping[str, Any]]) -> console.Group:
  """Returns a table with one row for each run.

  For runs that learn or swap it shows the summary after the last stage. For
  runs that forget it shows the accuracy on forgotten classes and the loss on
  retained ones of the worst request, the accuracy on classes of earlier
  requests at the end, the mean of H-mean, and what the method reports as part
  of a total.
  """
  swaps = all(map(_swaps, records))
  if all(r["axes"]["stage"][0] < 0 for r in records) and not swaps:
    title, summaries = "Over all requests (%)", _over_requests(records)
  else:
    title = f"After the last {'stage' if swaps else 'task'} (%)"
    summaries = summary_columns(records, [-1])
  out = _table()
  seconds = [f"{record['wall_seconds']:.0f}" for record in records]
  summaries["seconds"] = seconds
  out.add_column("run", no_wrap=True)
  _add_columns(out, list(summaries))
  for i, record in enumerate(records):
    cells = (column[i] for column in summaries.values())
    out.add_row(record["name"], *cells)
  return _titled(title, out)


def show(records: Sequence[Mapping[str, Any]]) -> None:
  """Prints the first run's table, all audits, and a table of all runs."""
  _print(run_table(records[0]))
  for record in records:
    audit = record["audits"][-1] if record.get("audits") else {}
    if audit:
      _print(audit_table.audit_table(audit, record["name"]))
  if len(records) > 1:
    _print(summary_table(records))


def _print(shown: console.RenderableType) -> None:
  """Prints a table; a file gets the width that its numbers need."""
  # Names of classes may look like rich's markup.
  if sys.stdout.isatty():
    console.Console(markup=False).print(shown)
    return
  least = console.Console(width=1000, markup=False).measure(shown).minimum
  console.Console(width=max(100, least), markup=False).print(shown)


def read(folders: Sequence[str]) -> list[dict[str, Any]]:
  """Returns the results.json of each folder.

  Raises:
    SystemExit: A folder without finished results of this version.
  """
  records = []
  for folder in folders:
    path = pathlib.Path(folder) / "results.json"
    try:
      record = results.read(path)
      if record is not None:
        results.check_readable(record, path)
        _check_whole(record, path)
    except (ValueError, OSError) as error:
      raise SystemExit(f"{type(error).__name__}: {error}") from None
    if record is None or not record["final"]:
      raise SystemExit(f"No results in {folder}; run main.py there first.")
    records.append(record)
  return records


def _check_whole(record: Mapping[str, Any], path: pathlib.Path) -> None:
  """Raises Damaged if entries that the tables show are missing."""
  kinds = {
    dict: ("final", "matrix", "axes", "summary"),
    list: ("reports", "stage_seconds"),
    str: ("name", "figure"),
    float: ("wall_seconds",),
  }
  for kind, keys in kinds.items():
    for key in keys:
      if not isinstance(
        record.get(key), (kind, int) if kind is float else kind
      ):
        raise results.Damaged(
          f"The results in {path} are damaged: {key!r} is missing or has "
          "another type. The command of the run makes them again, once the "
          "file is removed"
        )


def main(folders: Sequence[str]) -> None:
  """Prints the results of each folder."""
  if not folders:
    sys.exit("Give folders of runs: python -m libml.results.tables DIR ...")
  show(read(folders))


if __name__ == "__main__":
  main(sys.argv[1:])
