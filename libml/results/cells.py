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
  """Whether a value is an int or a float, and not a bool."""
  return isinstance(value, int | float) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
  """Whether a value is an int, and not a bool."""
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
    """Returns the numbers of all stages and their total, such as "3 0 of 6"."""
    both = self.name, self.total
    told = [r for r in reports if all(is_count(r.get(name)) for name in both)]
    parts = " ".join(str(report[self.name]) for report in told)
    return f"{parts} of {told[0][self.total]}" if told else ""


def columns(
  reports: Sequence[Mapping[str, Any]], taken: Collection[str] = ()
) -> list[Column]:
  """Returns a column for each number in the reports, in their order.

  Pictures (mappings) get no column. The last word of an integer's name is what
  it counts, and the title leaves it out: "pruned_heads" becomes "pruned". If
  the report also has the total, "heads", a cell reads 3/6, and the total has no
  column of its own.

  Args:
    reports: `Method.report` of each stage; {}: none.
    taken: Titles of the table's other columns.
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
