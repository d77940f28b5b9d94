"""From the classes of a data set to the rows of a pretrained head."""

import os
import pathlib
from collections.abc import Sequence


def names(path: str | os.PathLike[str]) -> tuple[str, ...]:
  """Returns the names of a head's classes.

  Args:
    path: Text file, a class a line in the head's order; the first word counts,
      so "n01440764 tench" names n01440764.

  Raises:
    FileNotFoundError: No such file.
    ValueError: A name that stands twice.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(
      f"No file {path}; it is to name the head's classes, one a line."
    )
  lines = path.read_text().splitlines()
  found = tuple(line.split()[0] for line in lines if line.strip())
  if len(set(found)) < len(found):
    twice = next(name for name in found if found.count(name) > 1)
    raise ValueError(f"{path} names {twice!r} twice; a head has it once.")
  return found


def head_rows(
  path: str | os.PathLike[str], class_names: Sequence[str]
) -> tuple[int, ...]:
  """Returns where in a file of `names` each class stands.

  Args:
    path: The file.
    class_names: Of the data set.

  Raises:
    FileNotFoundError: No such file.
    ValueError: A name that stands twice, or a class that is not in the file.
  """
  found = names(path)
  rows = {name: row for row, name in enumerate(found)}
  unknown = [name for name in class_names if name not in rows]
  if unknown:
    raise ValueError(
      f"{len(unknown)} of {len(class_names)} classes, such as {unknown[0]!r}, "
      f"are not among the {len(found)} names of {path} ({found[0]}, ...); name "
      "the data's folders as this file does."
    )
  return tuple(rows[name] for name in class_names)
