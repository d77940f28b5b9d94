"""Tables of things that a config names, and errors that help to name them."""

import difflib
import inspect
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def nearest(name: str, known: Iterable[str]) -> str:
  """Returns "Did you mean ...? Known: ..." for a name that is not known."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  hint = f"Did you mean {close[0]!r}? " if close else ""
  return f"{hint}Known: {', '.join(known) or 'none'}."


def build(
  table: Mapping[str, Callable[..., Any]], kind: str, name: str, **options
) -> Any:
  """Calls the row `name` of a table with the options that a config gives.

  Args:
    table: Name to class or function.
    kind: What the rows are, for the errors ("method").
    name: The row.
    **options: Keyword arguments of the row.

  Returns:
    What the row returns.

  Raises:
    ValueError: An unknown name, an unknown option, or one that is missing;
      the message names the nearest valid one.
  """
  check(f"{kind} {name!r}", options, parameters(table, kind, name))
  return table[name](**options)


def parameters(
  table: Mapping[str, Callable[..., Any]], kind: str, name: str
) -> dict[str, inspect.Parameter]:
  """Returns the options of the row `name` of a table, from its signature.

  Raises:
    ValueError: An unknown name; the message names the nearest one.
  """
  if name not in table:
    raise ValueError(f"Unknown {kind} {name!r}. {nearest(name, table)}")
  return dict(inspect.signature(table[name]).parameters)


def check(
  row: str,
  options: Iterable[str],
  known: Mapping[str, inspect.Parameter],
) -> None:
  """Checks the names of a row's options.

  Args:
    row: For the errors, such as "method 'l2p'".
    options: Those that a config gives.
    known: Those that there are.

  Raises:
    ValueError: An unknown option, or one that is missing.
  """
  options = set(options)
  if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
    for option in sorted(options - known.keys()):
      raise ValueError(
        f"Unknown option {option!r} of the {row}. {nearest(option, known)}"
      )
  missing = [
    p.name
    for p in known.values()
    if p.default is p.empty
    and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    and p.name not in options
  ]
  if missing:
    raise ValueError(
      f"The {row} needs {', '.join(missing)}; give "
      f"{'it' if len(missing) == 1 else 'them'} in the config."
    )


def plain(config: Any) -> Any:
  """Returns a config as plain dicts and tuples."""
  if isinstance(config, ConfigDict):
    config = config.to_dict()
  if isinstance(config, dict):
    return {key: plain(value) for key, value in config.items()}
  if isinstance(config, list | tuple):
    return tuple(plain(value) for value in config)
  return config
