"""One line that says what a process does, how far it is, and the time left.

On a terminal it is a bar, which rich redraws four times a second. Elsewhere it
is a plain line of the log, at most one every ten seconds.
"""

import dataclasses
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

_LOG = logging.getLogger("palimpsest")

# Least seconds between two lines of a log.
EVERY = 10.0


@dataclasses.dataclass(frozen=True)
class Shown:
  """What the line shows at one moment.

  Attributes:
    what: The work.
    done: Units of it that are done.
    total: All units; None: unknown.
    unit: Name of a unit, for a log; "": it has none.
    notes: Further facts, such as the time left.
  """

  what: str
  done: int = 0
  total: int | None = None
  unit: str = ""
  notes: tuple[str, ...] = ()

  def __str__(self) -> str:
    count = f"{self.unit} {self.done}/{self.total}" if self.total else ""
    return ", ".join(filter(None, (self.what, count.strip(), *self.notes)))


class ProgressLine:
  """Draws a line on a terminal, and logs lines elsewhere.

  It asks what to show only when it draws or logs.
  """

  def __init__(
    self, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
  ):
    """Shows nothing before `with line:`.

    Args:
      quiet: Whether to show nothing at all.
      clock: Returns seconds.
    """
    self._quiet = quiet
    self._clock = clock
    self._logged = clock()
    self._tell: Callable[[], Shown] = lambda: Shown("starting")
    self._live: Any = None

  def follow(self, tell: Callable[[], Shown]) -> None:
    """Shows what `tell` returns; logs it if the last line is EVERY seconds old.

    Args:
      tell: Returns what to show. On a terminal another thread calls it.
    """
    self._tell = tell
    if self._live is None and self._clock() - self._logged >= EVERY:
      self.say(str(tell()))

  def say(self, text: str) -> None:
    """Logs a line; on a terminal it is printed above the bar."""
    self._logged = self._clock()
    if not self._quiet:
      _LOG.info("%s", text)

  def __enter__(self) -> "ProgressLine":
    if sys.stderr.isatty() and not self._quiet:
      from rich import console
      from rich import live

      self._live = live.Live(
        get_renderable=lambda: drawn(self._tell()),
        console=console.Console(stderr=True),
        transient=True,
      )
      self._live.start()
    return self

  def __exit__(self, *_) -> None:
    if self._live is not None:
      self._live.stop()
      self._live = None


def drawn(shown: Shown) -> Any:
  """Returns a line for rich: a bar, the count, and the work with its times."""
  from rich import progress_bar
  from rich import table
  from rich import text

  line = table.Table.grid(padding=(0, 1, 0, 0))
  words = ", ".join((shown.what, *shown.notes))
  cells: list[Any] = [text.Text(words, no_wrap=True, overflow="ellipsis")]
  if shown.total:
    bar = progress_bar.ProgressBar(shown.total, shown.done, width=12)
    # First, because a narrow terminal cuts the end of the line.
    cells = [bar, f"{shown.unit} {shown.done}/{shown.total}".strip(), *cells]
    line.add_column(min_width=12)
    line.add_column(no_wrap=True, min_width=len(cells[1]))
  line.add_row(*cells)
  return line


def duration(seconds: float) -> str:
  """Returns a duration in words: "12 s", "3 min 20 s", "1 h 5 min"."""
  whole = round(seconds)
  if whole < 60:
    return f"{whole} s"
  if whole < 3600:
    return f"{whole // 60} min {whole % 60} s"
  return f"{whole // 3600} h {whole % 3600 // 60} min"
