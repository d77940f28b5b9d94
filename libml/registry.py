"""Calls what a config names; errors suggest the nearest name and option."""

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
  """Calls the entry `name` of a table with the options from a config.

  Args:
    table: From names to classes or functions.
    kind: What the entries are, for errors, such as "method".
    name: Key of the table.
    **options: Keyword arguments of the entry.

  Returns:
    What the entry returns.

  Raises:
    ValueError: The name or an option is unknown, or an option is missing; the
      message suggests the nearest valid name.
  """
  check(f"{kind} {name!r}", options, parameters(table, kind, name))
  return table[name](**options)


def parameters(
  table: Mapping[str, Callable[..., Any]], kind: str, name: str
) -> dict[str, inspect.Parameter]:
  """Returns the parameters of the entry `name` of a table, by name.

  Raises:
    ValueError: The name is unknown; the message suggests the nearest one.
  """
  if name not in table:
    raise ValueError(f"Unknown {kind} {name!r}. {nearest(name, table)}")
  return dict(inspect.signature(table[name]).parameters)


def check(
  entry: str,
  options: Iterable[str],
  known: Mapping[str, inspect.Parameter],
) -> None:
  """Checks that the options of a table's entry are known and complete.

  Args:
    entry: Name of the entry for errors, such as "method 'l2p'".
    options: Names of the options that a config gives.
    known: The entry's parameters, by name.

  Raises:
    ValueError: An option is unknown, or one without a default is missing.
  """
  options = set(options)
  if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
    for option in sorted(options - known.keys()):
      raise ValueError(
        f"Unknown option {option!r} of the {entry}. {nearest(option, known)}"
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
      f"The {entry} needs {', '.join(missing)}; give "
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
