"""Checkpoints: the only file that knows orbax.

A checkpoint holds what changes during a run and no frozen weight, and a
checksum of it: orbax restores damaged data without a word.
"""

import json
import logging
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

_LOG = logging.getLogger("palimpsest")


def fingerprint(tree: Any) -> list[int]:
  """Returns the crc32 of every leaf that this process holds whole."""

  def crc(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      if not leaf.is_fully_replicated:
        return 0
      leaf = leaf.addressable_data(0)
    return zlib.crc32(np.asarray(leaf).tobytes())

  return [crc(leaf) for leaf in jax.tree.leaves(tree)]


class Saver:
  """Saves asynchronously, restores the newest checkpoint that is sound."""

  def __init__(self, folder: pathlib.Path, *, keep: int):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

  def save(
    self,
    number: int,
    leaves: Mapping[str, jax.Array],
    progress: Mapping[str, Any],
  ) -> None:
    """Starts to save; `number` must grow from call to call.

    Raises:
      RuntimeError: The number is not above the newest one.
    """
    record = {"progress": progress, "crc": fingerprint(leaves)}
    saved = self._manager.save(
      number,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(dict(leaves)),
        progress=ocp.args.JsonSave(record),
      ),
    )
    if not saved:
      raise RuntimeError(f"Checkpoint {number} was not saved: it is not new.")

  def restore(
    self, abstract: Mapping[str, Any]
  ) -> tuple[int, dict[str, jax.Array], dict[str, Any]] | None:
    """Returns (number, leaves, progress) of the newest sound checkpoint.

    Args:
      abstract: Shapes and shardings of the leaves, by name.

    Returns:
      None where nothing was ever saved.

    Raises:
      ValueError: There are checkpoints, and none can be read.
    """
    errors = {}
    for number in sorted(self._manager.all_steps(), reverse=True):
      try:
        got: Any = self._manager.restore(
          number,
          args=ocp.args.Composite(
            state=ocp.args.StandardRestore(dict(abstract)),
            progress=ocp.args.JsonRestore(),
          ),
        )
        if fingerprint(got.state) != got.progress["crc"]:
          raise ValueError("its arrays are not those that were saved")
        return number, got.state, got.progress["progress"]
      except Exception as error:  # orbax raises Exception itself, too
        first = (str(error).splitlines() or [type(error).__name__])[0]
        errors[number] = first
        _LOG.warning(
          "Checkpoint %d cannot be used (%s); trying the one before.",
          number,
          first,
        )
    if errors:
      raise ValueError(
        f"No checkpoint can be used: {json.dumps(errors)}. Remove the "
        "workdir to start again."
      )
    return None

  def delete_above(self, number: int) -> None:
    """Deletes checkpoints newer than `number`, which were found damaged."""
    for newer in self._manager.all_steps():
      if newer > number:
        self._manager.delete(newer)

  def wait(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()

  def __enter__(self) -> "Saver":
    return self

  def __exit__(self, *unused) -> None:
    # Without close() the process hangs at its exit while a save runs.
    self._manager.close()
