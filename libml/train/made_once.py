"""Weights that a run makes on first use, cached with a checksum."""

import json
import logging
import math
import os
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from libml.devices import processes
from libml.devices import sharding
from models import checksums

# Folder of the weights made here, and of compiled functions.
CACHE = pathlib.Path(
  os.environ.get("PALIMPSEST_CACHE")
  or pathlib.Path.home() / ".cache" / "palimpsest"
)

_LOG = logging.getLogger("palimpsest")


def upstream(name: str, config: ConfigDict, execute: Callable[..., Any]) -> str:
  """Returns the cached weights of a pretraining config; made on first use.

  Args:
    name: Of the config, with its :arguments, if any.
    config: The config of this name.
    execute: (config, workdir, mesh=) -> runs a config.

  Returns:
    The path of the file.
  """
  settings = json.loads(config.to_json())
  del settings["audit"]  # audits do not change the weights
  text = json.dumps(settings, sort_keys=True)
  folder = f"{name.partition(':')[0]}-{zlib.crc32(text.encode()):08x}"

  def make(workdir: pathlib.Path) -> None:
    _LOG.info(
      "making the upstream weights, configs/%s.py; later runs find them in %s",
      name,
      CACHE / folder,
    )
    # Weights must not depend on the number of devices: keep batch_size.
    ways = math.gcd(config.batch_size, jax.device_count())
    mesh = sharding.make_mesh(ways, jax.device_count() // ways)
    _drop_unreadable(workdir / "config.json")
    execute(config, workdir, mesh=mesh)

  return weights(CACHE / folder, make, checksums.of)


def _drop_unreadable(path: pathlib.Path) -> None:
  """Removes a config that cannot be read; the folder's name stands for it."""
  try:
    if not path.exists() or json.loads(path.read_text()):
      return
    problem = "it holds no settings"
  except ValueError as error:
    problem = str(error)
  _LOG.warning("%s cannot be read (%s). It is written again.", path, problem)
  if processes.is_first():
    path.unlink(missing_ok=True)


def weights(
  folder: pathlib.Path,
  make: Callable[[pathlib.Path], None],
  checksum: Callable[[pathlib.Path], str],
) -> str:
  """Returns the path of the weights in a folder; they are made if missing.

  All processes make them together. If a file's checksum differs from the one
  written beside it, the run's last checkpoint is exported again.

  Args:
    folder: For these weights alone.
    make: Trains or resumes in a workdir, and writes its export/params.npz.
    checksum: Path -> checksum of the file.
  """
  processes.check_shared(folder)
  params, note = folder / "params.npz", folder / "params.sha256"

  def is_sound() -> bool:
    if not params.exists():
      return False
    sound = note.exists() and note.read_bytes() == checksum(params).encode()
    if not sound:
      _LOG.warning(
        "%s does not match %s, so one of them is damaged. The weights are made "
        "again from their run.",
        params,
        note.name,
      )
    return sound

  def publish() -> bool:
    os.replace(folder / "run" / "export" / "params.npz", params)
    note.write_text(checksum(params))
    return True

  with processes.lock(folder / "lock"):  # two runs may need them at once
    if not processes.first_says(is_sound):
      make(folder / "run")
      processes.first_says(publish)
  return str(params)
