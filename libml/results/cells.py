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


def is_count(value: Any) -> bool:
  """Whether a value is an integer, and no truth value."""
  return isinstance(value, int) and not isinstance(value, bool)


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
    value, total = report.get(self.name), report.get(self.total)
    if not is_number(value):
      return ""
    if is_count(total):
      return f"{value}/{total}"
    return f"{value:,}" if is_count(value) else f"{value:.4g}"

  def over_stages(self, reports: Sequence[Mapping[str, Any]]) -> str:
    """Returns the parts that stages report, and their total: "3 0 of 6"."""
    both = self.name, self.total
    told = [r for r in reports if all(is_count(r.get(name)) for name in both)]
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
  told = [(k, v) for r in reports for k, v in r.items() if is_number(v)]
  names = dict.fromkeys(name for name, _ in told)
  counts = names.keys() - {name for name, v in told if not is_count(v)}
  units = {n: n.rpartition("_")[2] for n in counts if n.rpartition("_")[0]}
  totals = {
    name: unit
    for name, unit in units.items()
    if any(is_count(r.get(name)) and is_count(r.get(unit)) for r in reports)
  }
  found, titles = [], {title.replace("_", " ") for title in taken}
  for name in names:
    if name in totals.values():
      continue
    unit, total = units.get(name, ""), totals.get(name, "")
    words = name.replace("_", " ")
    choices = (words.removesuffix(f" {unit}"), words) if unit else (words,)
    free = [title for title in choices if title not in titles]
    title = free[0] if free else f"reported {words}"
    found.append(Column(name, title, total))
    titles.add(title)
  return found
