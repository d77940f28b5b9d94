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
from models import pretrained

# Of made weights, and of compiled functions.
CACHE = pathlib.Path(
  os.environ.get("PALIMPSEST_CACHE")
  or pathlib.Path.home() / ".cache" / "palimpsest"
)

_LOG = logging.getLogger("palimpsest")


def upstream(name: str, config: ConfigDict, execute: Callable[..., Any]) -> str:
  """Returns the file of weights that a pretraining config makes, in the cache.

  Args:
    name: Of the config, perhaps with :arguments.
    config: What it returns.
    execute: (config, workdir, mesh=) runs a config.
  """
  settings = json.loads(config.to_json())
  del settings["audit"]  # weights are the same, whatever is asked of them
  text = json.dumps(settings, sort_keys=True)
  folder = f"{name.partition(':')[0]}-{zlib.crc32(text.encode()):08x}"

  def make(workdir: pathlib.Path) -> None:
    _LOG.info("Making the weights of configs/%s.py, once.", name)
    # The weights must not depend on the devices, so batch_size stands.
    ways = math.gcd(config.batch_size, jax.device_count())
    mesh = sharding.make_mesh(ways, jax.device_count() // ways)
    execute(config, workdir, mesh=mesh)

  return weights(CACHE / folder, make, pretrained.checksum)


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
