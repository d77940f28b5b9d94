"""Checks that images fit into memory before they are read."""

import pathlib
from collections.abc import Sequence
from typing import Any

_MEMINFO = pathlib.Path("/proc/meminfo")
_GROUP = pathlib.Path("/sys/fs/cgroup")


def available() -> int | None:
  """Returns the free memory of this machine or container in bytes.

  The result is None where neither Linux's /proc nor a control group says it.
  """
  found = []
  if _MEMINFO.is_file():
    fields = _fields(_MEMINFO)
    found.append(1024 * fields["MemAvailable:"])
  limit = _GROUP / "memory.max"
  if limit.is_file() and limit.read_text().strip() != "max":
    # The group's other memory is file cache, which the kernel frees.
    used = _fields(_GROUP / "memory.stat")["anon"]
    found.append(int(limit.read_text()) - used)
  return min(found, default=None)


def check(splits: Sequence[tuple[Any, str]]) -> None:
  """Checks that splits fit into the free memory.

  Images count twice, because a stream keeps a copy of those that it reads.

  Args:
    splits: Pairs of a prepared builder of TensorFlow Datasets and the name of a
      split, with slices or sums.

  Raises:
    ValueError: The images need more than the free memory.
  """
  free = available()
  need = 2 * sum(_size(prepared, name) for prepared, name in splits)
  if free is not None and need > free:
    names = [f"{prepared.info.full_name} {name}" for prepared, name in splits]
    percent = f"[:{max(100 * free // need, 1)}%]"
    raise ValueError(
      f"{', '.join(names)} would take {need / 1e9:.1f} GB of memory, twice "
      f"the size of the files, and {free / 1e9:.1f} GB are free. Read a slice, "
      "such as "
      f"train_split='train{percent}' (core50, domainnet: "
      f"portion='{percent}'), or unpack the images and take the data set "
      "'folder', which reads files as they are needed."
    )


def _fields(path: pathlib.Path) -> dict[str, int]:
  lines = [line.split() for line in path.read_text().splitlines()]
  return {line[0]: int(line[1]) for line in lines}


def _size(prepared: Any, split: str) -> int:
  """Returns the bytes that a split, or the slice of one, takes on disk."""
  if not prepared.info.splits:  # mocked data
    return 0
  return sum(
    pathlib.Path(part.filename).stat().st_size
    * part.take
    // max(part.examples_in_shard, 1)
    for part in prepared.info.splits[split].file_instructions
  )
