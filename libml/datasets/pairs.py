"""Lists of image pairs; a pair shows one person or two.

A list is a text file in one of two forms. In the first, a line has two paths,
relative to the images' folder, and 1 for one person or 0 for two:

  path_a path_b 1
  path_c path_d 0

The second is the form of LFW's pairs.txt: the first line has the number of
folds and the number of pairs per fold. The other lines are

  name n m            images n and m of one person
  name n other m      image n of one person, image m of another

where image n of NAME is NAME/NAME_000n.jpg. Fields are separated by tabs if the
line has any, else by spaces. Empty lines and lines that start with "#" are
ignored.
"""

import dataclasses
import pathlib
import zlib

import numpy as np

from libml.datasets import text


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Pairs of images, as indices into a list of images.

  Attributes:
    images: Paths of all images, each once.
    first: int32 [P], index of each pair's first image.
    second: int32 [P], index of each pair's second image.
    same: bool [P], whether both show one person.
    folds: F, the number of folds into which the pairs are cut, in their order.
  """

  images: tuple[pathlib.Path, ...]
  first: np.ndarray
  second: np.ndarray
  same: np.ndarray
  folds: int = 10

  @property
  def checksum(self) -> int:
    """CRC-32 of `first`, `second` and `same`."""
    arrays = (self.first, self.second, self.same)
    return zlib.crc32(b"".join(array.tobytes() for array in arrays))


def read(
  path: str | pathlib.Path, root: str | pathlib.Path, *, folds: int = 10
) -> Pairs:
  """Reads a list of pairs; see the module for the two forms.

  Args:
    path: The text file.
    root: Folder of the images.
    folds: F; not used for LFW's form, whose first line gives it.

  Raises:
    FileNotFoundError: The file or an image does not exist.
    ValueError: A line has neither form, there are fewer pairs than folds, or
      all pairs are of one kind.
  """
  path, root = pathlib.Path(path), pathlib.Path(root)
  if not path.is_file():
    raise FileNotFoundError(
      f"No list of pairs {path}; give a text file, such as LFW's pairs.txt."
    )
  lines = [
    (number, line.split("\t") if "\t" in line else line.split())
    for number, line in enumerate(text.read(path).splitlines(), start=1)
    if line.strip() and not line.startswith("#")
  ]
  is_lfw = bool(lines) and len(lines[0][1]) <= 2
  if is_lfw:
    folds = _number(path, *lines.pop(0))
  parse = _lfw_pair if is_lfw else _pair
  found = [parse(path, number, fields) for number, fields in lines]
  if folds < 2 or len(found) < folds:
    raise ValueError(
      f"{path} lists {len(found)} pairs for {folds} folds: list at least one"
      " per fold, and take at least 2 folds."
    )
  numbers: dict[str, int] = {}
  for a, b, _ in found:
    for name in (a, b):
      numbers.setdefault(name, len(numbers))
  missing = [name for name in numbers if not (root / name).is_file()]
  if missing:
    raise FileNotFoundError(
      f"{len(missing)} images of {path} are not in {root}, the first"
      f" {missing[0]}: give the folder to which the paths are relative."
    )
  same = np.array([is_same for _, _, is_same in found])
  _check_kinds(path, same)
  return Pairs(
    images=tuple(root / name for name in numbers),
    first=np.array([numbers[a] for a, _, _ in found], np.int32),
    second=np.array([numbers[b] for _, b, _ in found], np.int32),
    same=same,
    folds=folds,
  )


def _pair(path, number, fields):
  if len(fields) != 3 or fields[2] not in ("0", "1"):
    raise ValueError(
      f"{path}, line {number}: {' '.join(fields)!r} must be 'path_a path_b 1'"
      " (one person) or '... 0' (two); separate paths that contain spaces by"
      " tabs."
    )
  return fields[0], fields[1], fields[2] == "1"


def _lfw_pair(path, number, fields):
  match fields:
    case name, n, m if n.isdecimal() and m.isdecimal():
      return _lfw_image(name, n), _lfw_image(name, m), True
    case name, n, other, m if n.isdecimal() and m.isdecimal():
      return _lfw_image(name, n), _lfw_image(other, m), False
  raise ValueError(
    f"{path}, line {number}: {' '.join(fields)!r} must be 'name n m' or 'name"
    " n other m', because the first line is that of LFW's pairs.txt."
  )


def _lfw_image(name: str, number: str) -> str:
  return f"{name}/{name}_{int(number):04d}.jpg"


def _number(path, number, fields) -> int:
  if len(fields) == 1 or not fields[0].isdecimal():
    raise ValueError(
      f"{path}, line {number}: {' '.join(fields)!r} must be the numbers of"
      " folds and of pairs per fold, as in LFW's pairs.txt, or 'path_a path_b"
      " 1'."
    )
  return int(fields[0])


def _check_kinds(path: pathlib.Path, same: np.ndarray) -> None:
  if same.all() or not same.any():
    kind = "one person" if same.all() else "two persons"
    raise ValueError(
      f"The pairs of {path} all show {kind}: list pairs of both kinds."
    )
