"""A workdir belongs to one config."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from libml import processes

# Where arrays lie and what is asked of them, not what they are: a run may go on
# elsewhere, and answer more.
_FREE = ("mesh", "sharding", "audit")


def claim(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Makes a workdir a config's own.

  Raises:
    ValueError: The workdir holds the run of another config. One that never
      came to a checkpoint, because of a bad setting, holds nothing. Or the
      processes of this run see different folders.
  """
  processes.check_shared(workdir)
  path = workdir / "config.json"
  traces = [*workdir.glob("checkpoints/*"), *workdir.glob("results.json")]
  if path.exists() and traces:
    theirs = json.loads(path.read_text())
    free = {key: config.get(key) for key in _FREE}
    changes = differences({**theirs, **free}, {**config, **free})
    if changes:
      raise ValueError(
        f"{workdir} holds a run of another config: {'; '.join(changes)}. "
        "Take another --workdir, or the settings of that run."
      )
  elif processes.is_first():
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(draft, path)


def differences(theirs: Any, ours: Any, prefix: str = "") -> list[str]:
  """Returns "key: theirs, now ours" for each key that differs."""
  if not (isinstance(theirs, dict) and isinstance(ours, dict)):
    return [] if theirs == ours else [f"{prefix}: {theirs!r}, now {ours!r}"]
  return [
    line
    for key in sorted({*theirs, *ours})
    for line in differences(
      theirs.get(key), ours.get(key), f"{prefix}.{key}".removeprefix(".")
    )
  ]
