"""Cells of tables: shares in percent, and what a method reports of a stage."""

import dataclasses
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any


def percent(value: float | None, digits: int = 1) -> str:
  """Returns a share in percent; "" where there is none."""
  return "" if value is None else f"{100 * value:.{digits}f}"


def is_number(value: Any) -> bool:
  """Whether a value is a number, and no truth value."""
  return isinstance(value, int | float) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Column:
  """A column for a number of `Method.report`.

  Attributes:
    name: Of the number.
    title: Above the column.
    total: Name of the number that it is a part of; "": of none.
  """

  name: str
  title: str
  total: str = ""

  def cell(self, report: Mapping[str, Any]) -> str:
    """Returns the number as text; "" where the report lacks it."""
    if self.name not in report:
      return ""
    value = report[self.name]
    if self.total in report:
      return f"{value}/{report[self.total]}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"

  def over_stages(self, reports: Sequence[Mapping[str, Any]]) -> str:
    """Returns the parts that stages report, and their total: "3 0 of 6"."""
    told = [r for r in reports if self.name in r and self.total in r]
    parts = " ".join(str(report[self.name]) for report in told)
    return f"{parts} of {told[0][self.total]}" if told else ""


def columns(
  reports: Sequence[Mapping[str, Any]], taken: Collection[str] = ()
) -> list[Column]:
  """Returns the columns of what stages report, in the order of the reports.

  Numbers become columns, pictures (mappings) do not. A count is an integer; the
  last word of its name is what it counts, and the title leaves that out:
  "pruned_heads" becomes "pruned". Where the report has the total, "heads", the
  cell is a part of it, 3/6, and the total has no column.

  Args:
    reports: Of all stages; {} where there is none.
    taken: Titles of other columns.
  """
  numbers: dict[str, Any] = {}
  for report in reports:
    numbers.update({k: v for k, v in report.items() if is_number(v)})
  totals = {name.rpartition("_")[2] for name in numbers if "_" in name}
  found, titles = [], {*taken}
  for name, value in numbers.items():
    what, _, unit = name.rpartition("_")
    total = unit if what and unit in numbers else ""
    count = isinstance(value, int) and bool(what)
    if name in totals:
      continue
    words = name.replace("_", " ")
    choices = (what.replace("_", " "), words) if count or total else (words,)
    free = [title for title in choices if title not in titles]
    title = free[0] if free else f"reported {words}"
    found.append(Column(name, title, total))
    titles.add(title)
  return found
