"""Folders of images in a download, checked before anything is written."""

import pathlib
from collections.abc import Sequence

import tensorflow as tf

SUFFIXES = (".jpg", ".jpeg", ".png")


def images(
  root: pathlib.Path, folders: Sequence[str], expected: str
) -> dict[str, list[pathlib.Path]]:
  """Returns the image files of each folder, sorted.

  Args:
    root: The unpacked download.
    folders: The folders that it must have, such as "s1/o7".
    expected: Description of the layout, for the error.

  Raises:
    ValueError: A folder is missing or has no images.
  """
  found = {
    folder: sorted(
      path
      for path in (root / folder).glob("*")
      if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    for folder in folders
  }
  missing = [folder for folder, paths in found.items() if not paths]
  if missing:
    entries = sorted(path.name for path in root.iterdir())
    raise ValueError(
      f"{root} must hold {expected}. No images in {len(missing)} of the "
      f"{len(folders)} folders: {_first(missing)}. It holds "
      f"{_first(entries) or 'nothing'}."
    )
  return found


def is_image(path: pathlib.Path) -> bool:
  """Returns whether a file can be decoded."""
  try:
    tf.io.decode_image(path.read_bytes())
  except tf.errors.InvalidArgumentError:
    return False
  return True


def _first(names: Sequence[str]) -> str:
  return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
