"""The compiled functions of a run: each is compiled once, for all stages."""

import collections
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax

_COMPILATIONS: collections.Counter[str] = collections.Counter()


def _count(event: str, duration_secs: float, **facts: Any) -> None:
  del duration_secs
  if event == "/jax/core/compile/backend_compile_duration":
    _COMPILATIONS[facts["fun_name"]] += 1


jax.monitoring.register_event_duration_secs_listener(_count)


def keep_compiled(folder: pathlib.Path) -> None:
  """Keeps compiled programs, all of them, for later processes.

  JAX_COMPILATION_CACHE_DIR takes the folder's place.
  """
  place = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder))
  jax.config.update("jax_compilation_cache_dir", place)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


class Compiled:
  """Jitted functions by name, and how often each was compiled."""

  def __init__(self):
    self._functions: dict[str, Any] = {}
    self._before: dict[str, int] = {}

  def __call__(self, name: str, fn: Callable[..., Any], **options) -> Any:
    """Returns fn jitted; the same one for the same name."""
    if name not in self._functions:

      def named(*args):
        return fn(*args)

      named.__name__ = name
      self._functions[name] = jax.jit(named, **options)
      self._before[name] = _COMPILATIONS[f"jit({name})"]
    return self._functions[name]

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
