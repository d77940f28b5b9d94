"""What a run says in a terminal, and how it refuses."""

import logging
import sys

from absl import app
from absl import logging as absl_logging


class Lines(logging.Handler):
  """Prints to what sys.stderr is at the time: above a progress bar."""

  def emit(self, record: logging.LogRecord) -> None:
    """Prints one line."""
    print(self.format(record), file=sys.stderr, flush=True)


def start(log: logging.Logger) -> None:
  """Lets a logger print lines with the time, and no other one."""
  absl_logging.set_verbosity(absl_logging.WARNING)  # orbax tells every file
  log.setLevel(logging.INFO)
  log.propagate = False
  lines = Lines()
  lines.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
  log.addHandler(lines)


def parse(argv: list[str]) -> list[str]:
  """Reads the flags; a config that cannot be read is one line, no traceback."""
  try:
    return app.parse_flags_with_usage(argv)
  except (ValueError, OSError, LookupError, AttributeError, TypeError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
