"""Finds the classes of a data set in the class list of a pretrained head."""

import os
import pathlib
from collections.abc import Sequence

from libml.datasets import text


def names(path: str | os.PathLike[str]) -> tuple[str, ...]:
  """Returns the names of a head's classes.

  Args:
    path: Text file with one class per line, in the head's order. The first word
      of a line is the name: "n01440764 tench" names n01440764.

  Raises:
    FileNotFoundError: The file does not exist.
    ValueError: A name occurs twice.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(
      f"No file {path}; it must name the head's classes, one per line."
    )
  lines = text.read(path).splitlines()
  found = tuple(line.split()[0] for line in lines if line.strip())
  if len(set(found)) < len(found):
    twice = next(name for name in found if found.count(name) > 1)
    raise ValueError(
      f"{path} names {twice!r} twice. Only the first word of a line counts: "
      "give each class a word of its own, such as great_owl, and keep one line "
      "for each column of the head."
    )
  return found


def head_rows(
  path: str | os.PathLike[str], class_names: Sequence[str]
) -> tuple[int, ...]:
  """Returns the index of each class in the head's class list.

  Args:
    path: The file of the head's classes, as in `names`.
    class_names: The data set's classes.

  Raises:
    FileNotFoundError: The file does not exist.
    ValueError: A name occurs twice in the file, or a class is not in it.
  """
  found = names(path)
  rows = {name: row for row, name in enumerate(found)}
  unknown = [name for name in class_names if name not in rows]
  if unknown:
    raise ValueError(
      f"{len(unknown)} of {len(class_names)} classes, such as {unknown[0]!r}, "
      f"are not among the {len(found)} names of {path} ({found[0]}, ...), the "
      "first words of its lines; give the class folders these names."
    )
  return tuple(rows[name] for name in class_names)
