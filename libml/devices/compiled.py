"""The compiled functions of a run: each is compiled once, for all stages."""

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
  """Keeps all compiled programs on disk, for later processes.

  Args:
    folder: Where; the variable JAX_COMPILATION_CACHE_DIR comes before it.
  """
  place = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder))
  jax.config.update("jax_compilation_cache_dir", place)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


class Compiled:
  """Jitted functions by name, and how often each was compiled."""

  def __init__(self):
    self._given: dict[str, Callable[..., Any]] = {}
    self._jitted: dict[str, Any] = {}
    self._before: dict[str, int] = {}

  def __call__(self, name: str, fn: Callable[..., Any], **options) -> Any:
    """Returns fn jitted; the same one for the same name.

    Args:
      name: Of the function, and of its compilations in `counts`.
      fn: A name has one function. One that is made anew counts as the same when
        its code is, and all that it binds: the arguments of a
        functools.partial, the object of a method, what a closure closes over.
        Dataclasses among these are compared field by field, other values with
        ==. Arrays must be the same objects, so pass them as arguments.
      **options: Of jax.jit; those of the name's first call count.

    Raises:
      RuntimeError: The name has another function.
    """
    if name not in self._given:

      def named(*args):
        return fn(*args)

      named.__name__ = name
      self._given[name] = fn
      self._jitted[name] = jax.jit(named, **options)
      self._before[name] = _COMPILATIONS[f"jit({name})"]
    elif not _is_same(self._given[name], fn):
      raise RuntimeError(
        f"The name {name!r} has the compiled function {self._given[name]}, and "
        f"{fn} is another one, or binds other values. Give it another name, or "
        "pass what differs between the calls as arguments."
      )
    return self._jitted[name]

  def counts(self) -> dict[str, int]:
    """Returns {name: number of compilations, those from a cache included}.

    A jitted function's own `_cache_size` counts signatures: for a state that
    holds a random key it is 2 where XLA compiled once.
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
    asked: Pairs that hold these two; a function may bind itself.
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
  """Returns what a closure's cell holds; None where it is empty yet."""
  try:
    return cell.cell_contents
  except ValueError:
    return None


def _parts(value: Any) -> tuple[Any, ...] | None:
  """Returns a function's code and all that it binds, or a dataclass's fields.

  Args:
    value: Of any type; of others the result is None, and == compares them.
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
