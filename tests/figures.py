"""Stored reference figures, and which of them a test module has read.

A test module that answers for files names them in `FIGURES`, as a literal:
{"family/name": {"pattern of keys that no test reads": "reason"}}. conftest.py
fails the module if another key of these files was not read.
"""

import collections
import fnmatch
import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np

OWN = pathlib.Path(__file__).resolve().parent / "golden"
VARIABLE = "PALIMPSEST_GOLDEN"


def folder():
  """Returns the folder of the figures: tests/golden, or another set of them.

  Raises:
    FileNotFoundError: If PALIMPSEST_GOLDEN names no folder.
  """
  found = pathlib.Path(os.environ.get(VARIABLE) or OWN)
  if not found.is_dir():
    raise FileNotFoundError(
      f"{VARIABLE} is {str(found)!r}, which is no folder; name one with the "
      "files of tests/golden, or unset it."
    )
  return found


def cases(path, pattern):
  """Returns what a pattern's groups say of the keys of a file, in order.

  For parametrized tests, whose cases are known before any fixture is.

  Args:
    path: "family/name".
    pattern: A regular expression with groups, over whole keys.

  Returns:
    Strings, or tuples of them if the pattern has several groups.
  """
  with np.load(folder() / f"{path}.npz") as file:
    matches = [re.fullmatch(pattern, key) for key in file.files]
  groups = [match.groups() for match in matches if match]
  return list(dict.fromkeys(g[0] if len(g) == 1 else g for g in groups))


class Figures(Mapping):
  """The arrays of one file; records the keys that were read.

  `file[key]` and `part` count as reading; `in`, iteration over the names,
  `items()` and `values()` do not.
  """

  def __init__(self, arrays, read):
    self._arrays = arrays
    self._read = read

  def __getitem__(self, key):
    value = self._arrays[key]
    self._read.add(key)
    return value

  def __contains__(self, key):
    return key in self._arrays

  def __iter__(self):
    return iter(self._arrays)

  def __len__(self):
    return len(self._arrays)

  def items(self):
    return self._arrays.items()

  def values(self):
    return self._arrays.values()

  def part(self, prefix):
    """Reads the keys of a prefix; returns {the rest of the key: array}."""
    keys = [key for key in self._arrays if key.startswith(prefix)]
    return {key.removeprefix(prefix): self[key] for key in keys}


class Reader:
  """Reads files of figures: reader("l2p", "l2p_step") returns `Figures`."""

  def __init__(self, root):
    self.root = root
    self.read = collections.defaultdict(set)

  def __call__(self, family, name):
    with np.load(self.root / family / f"{name}.npz") as file:
      return Figures(dict(file), self.read[f"{family}/{name}"])

  def unread(self, claimed):
    """Returns what is wrong with a module's `FIGURES`, one line for each."""
    wrong = []
    for path, left_out in claimed.items():
      with np.load(self.root / f"{path}.npz") as file:
        keys = sorted(set(file.files) - self.read[path])
      for pattern in left_out:
        matching = fnmatch.filter(keys, pattern)
        if not matching and self.root == OWN:
          wrong.append(f"{path}: {pattern!r} is left out, and nothing unread")
        keys = [key for key in keys if key not in matching]
      wrong += [f"{path}: no test reads {key!r}" for key in keys]
    return wrong
