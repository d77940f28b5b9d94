"""A workdir belongs to one config."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from libml.devices import processes
from libml.results import results

# Keys that may change on resume: they affect placement, audits and export, not
# training.
_FREE = ("mesh", "sharding", "audit", "export")


def begin(
  workdir: pathlib.Path, config: Mapping[str, Any], *, audit: bool
) -> tuple[dict[str, Any] | None, bool]:
  """Claims a workdir for a config, and returns what is left to do there.

  Args:
    workdir: Of the run.
    config: As plain data.
    audit: Whether to audit a finished run even if the config does not.

  Returns:
    The results of a finished run, or None; whether to audit it.

  Raises:
    ValueError: As `claim`, or there is no finished run to audit.
  """
  record = finished(workdir, exported=config["export"])
  if audit and record is None:
    raise ValueError(
      f"{workdir} holds no finished run to audit; run without --audit first."
    )
  claim(workdir, config)
  due = config["audit"]["stages"] != "none" and lacks_audits(record)
  return record, audit or due


def claim(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Writes the config into a workdir, which then belongs to it.

  Another config may claim a workdir that has neither a checkpoint nor results:
  a run ended there before its first checkpoint.

  Args:
    workdir: Created if it is missing.
    config: As plain data.

  Raises:
    ValueError: The workdir holds the run of another config, or the processes of
      this run see different folders.
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


def finished(workdir: pathlib.Path, *, exported: bool) -> dict[str, Any] | None:
  """Returns the results of a finished run; None: the run is not finished.

  Process 0 decides. Another process that cannot see the file yet gets {}.

  Args:
    workdir: Of the run.
    exported: Whether a finished run must have an export, too.

  Raises:
    ValueError: An earlier version finished the run.
  """
  path = workdir / "results.json"
  record = results.read(path)
  if record is not None and record["finished"]:
    results.check_readable(record, path)

  def is_there() -> bool:
    weights = workdir / "export" / "params.npz"
    done = record is not None and record["finished"]
    return done and (not exported or weights.exists())

  return (record or {}) if processes.first_says(is_there) else None


def lacks_audits(record: Mapping[str, Any] | None) -> bool:
  """Whether a run is finished and its results hold no audit."""
  return processes.first_says(
    lambda: record is not None and not any(record.get("audits", ()))
  )


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
