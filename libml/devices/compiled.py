"""The compiled functions of a run; each is compiled once for all stages."""

import collections
import dataclasses
import functools
import os
import pathlib
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

_COMPILATIONS: collections.Counter[str] = collections.Counter()


def _count(event: str, duration_secs: float, **facts: Any) -> None:
  del duration_secs
  if event == "/jax/core/compile/backend_compile_duration":
    _COMPILATIONS[facts["fun_name"]] += 1


jax.monitoring.register_event_duration_secs_listener(_count)


def keep_compiled(folder: pathlib.Path) -> None:
  """Makes JAX cache all compiled programs on disk, for later processes.

  Args:
    folder: Folder of the cache; the environment variable
      JAX_COMPILATION_CACHE_DIR takes precedence.
  """
  place = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder))
  jax.config.update("jax_compilation_cache_dir", place)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


class Compiled:
  """Jitted functions by name; counts how often each was compiled."""

  def __init__(self, on_compile: Callable[[str], None] = lambda _: None):
    """Holds no function yet.

    Args:
      on_compile: Told the name of a function that is about to be compiled.
    """
    self._on_compile = on_compile
    self._given: dict[str, Callable[..., Any]] = {}
    self._jitted: dict[str, Any] = {}
    self._before: dict[str, int] = {}

  def __call__(self, name: str, fn: Callable[..., Any], **options) -> Any:
    """Returns the jitted function of a name; jits `fn` on the first call.

    Later calls with the name must pass the same function. A function that was
    made again (a closure, a method, a functools.partial) is the same if its
    code and all values that it binds are equal. Dataclasses among these values
    are compared field by field, others with ==. Arrays must be the same
    objects; pass them as arguments instead.

    Args:
      name: Name of the function, also in `counts`.
      fn: The function.
      **options: Options of jax.jit; those of the first call are used.

    Raises:
      RuntimeError: The name has another function already.
    """
    if name not in self._given:

      def named(*args):
        self._on_compile(name)  # runs while JAX traces, not in each call
        return fn(*args)

      named.__name__ = name
      self._given[name] = fn
      self._jitted[name] = jax.jit(named, **options)
      self._before[name] = _COMPILATIONS[f"jit({name})"]
    elif not _is_same(self._given[name], fn):
      raise RuntimeError(
        f"The name {name!r} has the compiled function {self._given[name]}, but "
        f"{fn} is another function or binds other values. Give it another "
        "name, or pass the values that differ as arguments."
      )
    return self._jitted[name]

  def counts(self) -> dict[str, int]:
    """Returns {name: number of compilations}; a load from a cache counts.

    `_cache_size` of a jitted function counts signatures instead: for a state
    that contains a random key it is 2 although XLA compiled once.
    """
    made = {
      name: _COMPILATIONS[f"jit({name})"] - before
      for name, before in sorted(self._before.items())
    }
    return {name: count for name, count in made.items() if count}


def _is_same(
  known: Any, given: Any, asked: frozenset[tuple[int, int]] = frozenset()
) -> bool:
  """Returns whether two functions, or values that they bind, are the same.

  Args:
    known: A function or value.
    given: Another one.
    asked: Pairs of ids that are being compared, since a function may bind
      itself.
  """
  pair = id(known), id(given)
  if known is given or pair in asked:
    return True
  is_array = isinstance(known, np.ndarray | jax.Array)
  if is_array or type(known) is not type(given):
    return False
  same = functools.partial(_is_same, asked=asked | {pair})
  if isinstance(known, dict):
    return known.keys() == given.keys() and all(
      same(value, given[key]) for key, value in known.items()
    )
  if isinstance(known, tuple | list):
    return len(known) == len(given) and all(map(same, known, given))
  parts = _parts(known)
  return bool(known == given) if parts is None else same(parts, _parts(given))


def _content(cell: types.CellType) -> Any:
  """Returns the value in a closure's cell; None if the cell is still empty."""
  try:
    return cell.cell_contents
  except ValueError:
    return None


def _parts(value: Any) -> tuple[Any, ...] | None:
  """Returns a function's code and bound values, or a dataclass's fields.

  The result is None for values of other types, which == compares.
  """
  if isinstance(value, functools.partial):
    return value.func, value.args, value.keywords
  if isinstance(value, types.MethodType):
    return value.__func__, value.__self__
  if isinstance(value, types.FunctionType):
    bound = [_content(cell) for cell in value.__closure__ or ()]
    defaults = value.__defaults__, value.__kwdefaults__
    return value.__module__, value.__code__, *defaults, *bound
  is_settings = dataclasses.is_dataclass(value) and not isinstance(value, type)
  if is_settings and type(value).__eq__ is not object.__eq__:
    compared = [f.name for f in dataclasses.fields(value) if f.compare]
    return tuple(getattr(value, name) for name in compared)
  return None
