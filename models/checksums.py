"""SHA-256 checksums of a folder's files, in its checksums.json."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from typing import Any

FILE = "checksums.json"


def of(path: str | os.PathLike[str]) -> str:
  """Returns the SHA-256 of a file, in hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def note(folder: pathlib.Path, *names: str, **facts: Any) -> None:
  """Adds the checksums of some files, and further facts, to the folder's.

  Args:
    folder: Of the files.
    *names: Of the files in the folder.
    **facts: Plain data to keep beside.
  """
  known = _read(folder) if (folder / FILE).exists() else {"files": {}}
  files = {**known["files"], **{name: of(folder / name) for name in names}}
  draft = (folder / FILE).with_suffix(".tmp")
  record = {**known, **facts, "files": dict(sorted(files.items()))}
  draft.write_text(json.dumps(record, indent=2) + "\n")
  os.replace(draft, folder / FILE)


def check(folder: pathlib.Path, *names: str) -> dict[str, Any]:
  """Checks files against their checksums; returns the facts kept beside.

  Args:
    folder: Of the files.
    *names: Of the files to check; none: all that have a checksum.

  Raises:
    FileNotFoundError: A file, or checksums.json, is missing.
    ValueError: A file is not the one that was written.
  """
  known = _read(folder)
  for name in names or known["files"]:
    if of(folder / name) != known["files"].get(name):
      raise ValueError(
        f"{folder / name} does not match its checksum in {folder / FILE}: it "
        "is damaged, or not the file that was written there. Restore it, or "
        "repeat the run that wrote it."
      )
  return {key: value for key, value in known.items() if key != "files"}


def check_listed(path: pathlib.Path) -> None:
  """Checks a file, if its folder has a checksum of it.

  Raises:
    ValueError: The file is not the one that was written.
  """
  folder = path.parent
  if (folder / FILE).exists() and path.name in _read(folder)["files"]:
    check(folder, path.name)


def _read(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / FILE
  try:
    record = json.loads(path.read_text())
    dict(record["files"])
    return record
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path} is damaged ({error}): restore it, or repeat the run that wrote "
      "it."
    ) from None
