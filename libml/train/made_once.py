"""Weights that a run makes on first use, cached with a checksum."""

import os
import pathlib
from collections.abc import Callable

from libml.devices import processes


def weights(
  folder: pathlib.Path,
  make: Callable[[pathlib.Path], None],
  checksum: Callable[[pathlib.Path], str],
) -> str:
  """Returns the file of weights in a folder; made first, if need be.

  All processes make them together; where their checksum is not the one that was
  written beside them, they are written again from the run's checkpoint.

  Args:
    folder: For these weights alone.
    make: Runs, or goes on, in a workdir, until export/params.npz is there.
    checksum: Of a file.
  """
  processes.check_shared(folder)
  params, note = folder / "params.npz", folder / "params.sha256"

  def is_sound() -> bool:
    known = note.read_text() if note.exists() and params.exists() else None
    return known is not None and known == checksum(params)

  def publish() -> bool:
    os.replace(folder / "run" / "export" / "params.npz", params)
    note.write_text(checksum(params))
    return True

  with processes.lock(folder / "lock"):  # two first uses at a time
    if not processes.first_says(is_sound):
      make(folder / "run")
      processes.first_says(publish)
  return str(params)
