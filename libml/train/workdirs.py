"""A workdir belongs to one config, and to one run at a time."""

import contextlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from libml.devices import processes
from libml.results import results

# Keys that may change on resume: they affect placement, audits and export, not
# training.
_FREE = ("mesh", "sharding", "audit", "export")

_LOG = logging.getLogger("palimpsest")


@contextlib.contextmanager
def begin(
  workdir: pathlib.Path, config: Mapping[str, Any], *, audit: bool
) -> Iterator[tuple[dict[str, Any] | None, bool]]:
  """Holds a workdir for the run of a config; gives what is left to do there.

  Args:
    workdir: Of the run; created if it is missing.
    config: As plain data.
    audit: Whether to audit a finished run even if the config does not.

  Yields:
    The results of a finished run, or None; whether to audit it.

  Raises:
    ValueError: As `claim`, another run is at work there, or there is no
      finished run to audit.
  """
  processes.check_shared(workdir)
  with processes.lock(workdir / "lock", wait=False):
    record = finished(workdir, exported=config["export"])
    if audit and record is None:
      raise ValueError(
        f"{workdir} holds no finished run to audit; run without --audit first."
      )
    claim(workdir, config)
    due = config["audit"]["stages"] != "none" and lacks_audits(record)
    yield record, audit or due


def claim(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Writes the config into a workdir, which then belongs to it.

  Another config may claim a workdir that has neither a checkpoint nor results:
  a run ended there before its first checkpoint.

  Args:
    workdir: A folder.
    config: As plain data.

  Raises:
    ValueError: The workdir holds the run of another config, or one whose config
      cannot be read.
  """
  path = workdir / "config.json"
  traces = [*workdir.glob("checkpoints/*"), *workdir.glob("results.json")]
  if path.exists() and traces:
    theirs = _config(path)
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


def _config(path: pathlib.Path) -> dict[str, Any]:
  """Returns the config of the run in a workdir."""
  try:
    config = json.loads(path.read_text())
    if not isinstance(config, dict) or not config:
      raise ValueError("it holds no settings")
  except ValueError as error:
    raise ValueError(
      f"{path} cannot be read ({error}), so nothing says which config this "
      "workdir's run has. Restore the file; or remove it, if this command is "
      "that run's; or take another --workdir."
    ) from None
  return config


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
  try:
    record = results.read(path)
  except results.Damaged as error:
    _LOG.warning("%s. They are made again from the last checkpoint.", error)
    record = None
  if record is not None and record.get("finished"):
    results.check_readable(record, path)

  def is_there() -> bool:
    weights = workdir / "export" / "params.npz"
    done = record is not None and bool(record.get("finished"))
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
