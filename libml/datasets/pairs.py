"""Lists of image pairs that show one person, or two.

A list is a text file in either of two forms:

  path_a path_b 1           1: one person, 0: two; paths from the images' folder
  path_c path_d 0

and LFW's own pairs.txt, a first line with the number of folds and of pairs,
then name n m, or name n other m, for NAME/NAME_000n.jpg. Fields are parted by
tabs where a line has some, else by spaces. Empty lines and lines that start
with "#" are passed over.
"""

import dataclasses
import pathlib
import zlib

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Pairs of images, the images numbered.

  Attributes:
    images: Paths of all images, each once.
    first: int32 [P], number of each pair's first image.
    second: int32 [P], number of its second.
    same: bool [P], whether they show one person.
    folds: F, into how many folds the pairs are cut, in their order.
  """

  images: tuple[pathlib.Path, ...]
  first: np.ndarray
  second: np.ndarray
  same: np.ndarray
  folds: int = 10

  @property
  def checksum(self) -> int:
    """CRC-32 of which images are paired, and how."""
    arrays = (self.first, self.second, self.same)
    return zlib.crc32(b"".join(array.tobytes() for array in arrays))


def read(
  path: str | pathlib.Path, root: str | pathlib.Path, *, folds: int = 10
) -> Pairs:
  """Reads a list of pairs; see the module for the two forms.

  Args:
    path: The text file.
    root: Folder of the images.
    folds: F; LFW's own list has its number of folds in the first line.

  Raises:
    FileNotFoundError: No such file, or images that do not exist.
    ValueError: A line of neither form, fewer pairs than folds, or pairs that
      are all of one kind.
  """
  path, root = pathlib.Path(path), pathlib.Path(root)
  if not path.is_file():
    raise FileNotFoundError(f"No list of pairs {path}.")
  lines = [
    (number, line.split("\t") if "\t" in line else line.split())
    for number, line in enumerate(path.read_text().splitlines(), start=1)
    if line.strip() and not line.startswith("#")
  ]
  is_lfw = bool(lines) and len(lines[0][1]) <= 2
  if is_lfw:
    folds = _number(path, *lines.pop(0))
  parse = _lfw_pair if is_lfw else _pair
  found = [parse(path, number, fields) for number, fields in lines]
  if folds < 2 or len(found) < folds:
    raise ValueError(
      f"{path} lists {len(found)} pairs for {folds} folds: list at least one a"
      " fold, and take at least 2 folds."
    )
  numbers: dict[str, int] = {}
  for a, b, _ in found:
    for name in (a, b):
      numbers.setdefault(name, len(numbers))
  missing = [name for name in numbers if not (root / name).is_file()]
  if missing:
    raise FileNotFoundError(
      f"{len(missing)} images of {path} are not in {root}, the first"
      f" {missing[0]}: give the folder that the paths start from."
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
      " (one person) or '... 0' (two); part paths with spaces by tabs."
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
    " n other m', as in LFW's pairs.txt, which the first line announces."
  )


def _lfw_image(name: str, number: str) -> str:
  return f"{name}/{name}_{int(number):04d}.jpg"


def _number(path, number, fields) -> int:
  if len(fields) == 1 or not fields[0].isdecimal():
    raise ValueError(
      f"{path}, line {number}: {' '.join(fields)!r} must be the numbers of"
      " folds and of pairs a fold, as in LFW's pairs.txt, or 'path_a path_b 1'."
    )
  return int(fields[0])


def _check_kinds(path: pathlib.Path, same: np.ndarray) -> None:
  if same.all() or not same.any():
    kind = "one person" if same.all() else "two persons"
    raise ValueError(
      f"The pairs of {path} all show {kind}: list pairs of both kinds."
    )
