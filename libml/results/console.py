"""Log lines, and parsing of the command line."""

import itertools
import logging
import re
import sys
from collections.abc import Sequence

from absl import flags
from absl import logging as absl_logging


class Lines(logging.Handler):
  """Prints to the present sys.stderr, so that rich puts lines above its bar."""

  def emit(self, record: logging.LogRecord) -> None:
    """Prints one line."""
    print(self.format(record), file=sys.stderr, flush=True)


def start(log: logging.Logger) -> None:
  """Makes a logger print lines with the time; others print only warnings."""
  # At INFO, orbax logs every file that it writes.
  absl_logging.set_verbosity(absl_logging.WARNING)
  # Libraries that log through absl print to the present sys.stderr, too.
  flags.FLAGS.logtostderr = True
  log.setLevel(logging.INFO)
  log.propagate = False
  absl_logging.get_absl_handler().addFilter(_first_line)
  sys.unraisablehook = lambda failed: log.debug("%s", failed.exc_value)
  lines = Lines()
  lines.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
  log.addHandler(lines)


def _first_line(record: logging.LogRecord) -> bool:
  """Cuts what libraries log to a line; asyncio repeats what was raised."""
  first, *_ = record.getMessage().splitlines() or [""]
  record.msg, record.args = first[:200], ()
  record.exc_info = record.exc_text = None
  return record.name != "asyncio"


def parse(argv: list[str], config: str = "my_config") -> list[str]:
  """Parses the flags; exits with one line if the config cannot be read.

  It also exits if a word is no flag: absl ignores such words, and with them
  every flag behind.

  Args:
    argv: Of the process.
    config: Name of the config's flag, which may stand anywhere.
  """
  sys.argv[:] = config_first(argv, config)  # config_flags reads it, too
  flags.FLAGS.set_gnu_getopt(True)
  try:
    program, *stray = flags.FLAGS(sys.argv)
    if stray:
      raise ValueError(
        f"{stray[0]!r} is no flag. Flags begin with two dashes, and a value "
        f"follows after '=': write --{stray[0].lstrip('-')}, or leave it out."
      )
    return [program]
  except flags.Error as error:  # a config's error stands at its end
    *_, last = str(error).strip().splitlines()
    # What Python's int and float say.
    last = re.sub(
      r"invalid literal for int\(\) with base 10: .*", "give an integer.", last
    )
    last = re.sub(
      r"could not convert string to float: .*", "give a number.", last
    )
    sys.exit(last.strip())
  except Exception as error:  # a config is Python, and raises anything
    first, *_ = str(error).splitlines() or [""]
    sys.exit(f"{type(error).__name__}: {first}")


def config_first(argv: Sequence[str], name: str) -> list[str]:
  """Returns a command line with the config file before all other flags.

  ml_collections knows the flags --NAME.KEY only once it has read the file.

  Args:
    argv: The program, then its flags; what follows "--" stays where it is.
    name: Of the config's flag, NAME.
  """
  flag = re.compile(rf"--?{re.escape(name)}(=.*)?", re.DOTALL)
  found, others = [], []
  rest = iter(argv[1:])
  for word in rest:
    if word == "--":
      others += [word, *rest]
    elif (match := flag.fullmatch(word)) is None:
      others.append(word)
    else:
      found += [word] if match[1] else [word, *itertools.islice(rest, 1)]
  return [*argv[:1], *found, *others]
