"""Results over seeds: mean and standard deviation, one row for each method."""

import csv
import dataclasses
import io
import itertools
import math
import statistics
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

Record = Mapping[str, Any]


def _rows(record: Record) -> Sequence[Mapping[str, float]]:
  return record["summary"][record["figure"]][1:]


def _requests(record: Record) -> Sequence[Mapping[str, float]]:
  """Returns one row for each request; none for a swap, see `_swapped`."""
  return [row for row in _rows(record) if "acc_learn" not in row]


def _worst(name: str) -> Callable[[Record], float | None]:
  return lambda record: max(
    (row[name] for row in _requests(record)), default=None
  )


def _last(name: str) -> Callable[[Record], float | None]:
  return lambda record: _rows(record)[-1].get(name)


def _swapped(name: str) -> Callable[[Record], float | None]:
  return lambda record: None if _requests(record) else _last(name)(record)


def _h_mean(record: Record) -> float | None:
  values = [row["h_mean"] for row in _requests(record)]
  return statistics.mean(values) if values else None


def _share(record: Record) -> float | None:
  count = record.get("parameters")
  return count and count["trainable"] / count["total"]


def _audit(
  *path: str, null: float | None = None
) -> Callable[[Record], float | None]:
  """Returns a function that reads a number of the last audit in a record.

  Args:
    *path: Keys down to the number.
    null: What it returns where the number is null.
  """

  def read(record):
    asked = [audit for audit in record.get("audits", ()) if audit]
    found = asked[-1] if asked else {}
    for name in path:
      if not found or name not in found:
        return None
      found = found[name]
    return null if found is None else found

  return read


# Column -> (reader of its number in a record, factor, decimals). A table leaves
# out columns that no run has.
COLUMNS: dict[str, tuple[Callable[[Record], float | None], float, int]] = {
  "learned (%)": (_swapped("acc_learn"), 100, 1),
  "forgotten (%)": (_swapped("acc_forget"), 100, 1),
  "retained (%)": (_swapped("acc_retain"), 100, 1),
  "of three (%)": (_swapped("swap_mean"), 100, 1),
  "forget (%)": (_worst("acc_forget"), 100, 1),
  "retain lost (%)": (_worst("drop_retain"), 100, 1),
  "old (%)": (_last("acc_old"), 100, 1),
  "missing (%)": (_last("acc_missing"), 100, 1),
  "H-mean (%)": (_h_mean, 100, 1),
  "seconds": (lambda record: record["wall_seconds"], 1, 0),
  "trained (%)": (_share, 100, 2),
  "probe left (%)": (_audit("linear_probe", "head", "left"), 100, 1),
  "relearned in": (
    _audit("relearning", "after", "steps", null=math.inf),
    1,
    0,
  ),
  "membership AUC (%)": (
    _audit("membership", "after", "test", "auc"),
    100,
    1,
  ),
}


@dataclasses.dataclass(frozen=True)
class Cell:
  """A number over the seeds of a row.

  Attributes:
    values: The number in each finished run that has it; inf: never reached.
    digits: Decimals that are shown.
  """

  values: Sequence[float]
  digits: int

  @property
  def reached(self) -> list[float]:
    """The finite values."""
    return [value for value in self.values if math.isfinite(value)]

  @property
  def mean(self) -> float | None:
    """Mean over the seeds that reached a finite value; None: none did."""
    return statistics.mean(self.reached) if self.reached else None

  @property
  def std(self) -> float | None:
    """Sample standard deviation of the finite values; None below two."""
    return statistics.stdev(self.reached) if len(self.reached) > 1 else None

  def __str__(self) -> str:
    if self.mean is None:
      return "never" if self.values else "–"
    shown = f"{self.mean:.{self.digits}f}"
    if self.std is not None:
      shown += f" ± {self.std:.{self.digits}f}"
    if len(self.reached) < len(self.values):
      shown += f" ({len(self.reached)} of {len(self.values)})"
    return shown


@dataclasses.dataclass(frozen=True)
class Row:
  """The runs of one method.

  Attributes:
    name: Name of the row.
    records: Content of results.json of each finished run.
    total: Number of runs, unfinished ones included.
  """

  name: str
  records: Sequence[Record]
  total: int

  def cell(self, column: str) -> Cell:
    """Returns the row's cell in a column of COLUMNS."""
    read, factor, digits = COLUMNS[column]
    found = [read(record) for record in self.records]
    values = [factor * value for value in found if value is not None]
    return Cell(values, digits)


def _columns(table: Sequence[Row]) -> list[str]:
  return [c for c in COLUMNS if any(row.cell(c).values for row in table)]


def markdown(table: Sequence[Row]) -> str:
  """Returns a Markdown table: mean ± standard deviation over the seeds."""
  columns = _columns(table)
  lines = [["method", "runs", *columns], ["---"] * (2 + len(columns))]
  for row in table:
    cells = (str(row.cell(column)) for column in columns)
    lines.append([row.name, f"{len(row.records)}/{row.total}", *cells])
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def comma_separated(table: Sequence[Row]) -> str:
  """Returns the same as CSV, in full precision; missing values are empty."""
  columns = _columns(table)
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  pairs = [(c, f"{c} std", f"{c} runs") for c in columns]
  writer.writerow(["method", "finished", "runs", *itertools.chain(*pairs)])
  for row in table:
    line = [row.name, len(row.records), row.total]
    for column in columns:
      cell = row.cell(column)
      line += [cell.mean, cell.std, len(cell.reached)]
    writer.writerow(line)
  return out.getvalue()
