"""Checkpoints; the only file that imports orbax.

A checkpoint holds the leaves that change during a run, but no frozen weights.
It also holds a checksum of each leaf and of the run's progress, because orbax
restores damaged data without an error.
"""

import contextlib
import hashlib
import json
import logging
import pathlib
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from libml import hashing
from libml.devices import processes

_LOG = logging.getLogger("palimpsest")


@jax.jit
def _checksum(leaf: jax.Array) -> jax.Array:
  """Returns the sum of every element's bits, mixed with its position."""
  if leaf.dtype == bool:
    leaf = leaf.astype(jnp.uint8)
  if leaf.dtype.itemsize > 4:
    leaf = jax.lax.bitcast_convert_type(leaf, jnp.uint32)  # [..., 2]
  width = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
  bits = jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)
  place = jnp.zeros(bits.shape, jnp.uint32)
  for axis, size in enumerate(bits.shape):
    along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    place = place * np.uint32(size) + along
  return jnp.sum(
    hashing.scramble(bits ^ hashing.scramble(place + np.uint32(1))),
    dtype=jnp.uint32,
  )


def fingerprint(tree: Any) -> list[int]:
  """Returns a checksum of every leaf.

  A leaf's checksum is the sum modulo 2^32 of hashes of each element's value and
  position. It is computed on the devices and is the same on every mesh. One
  changed element always changes it; two exchanged elements do, too, unless
  hashes collide. All processes must call this.
  """

  def checksum(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    # One at a time: on virtual devices of few cores, concurrent sums of sharded
    # leaves deadlock.
    return jax.block_until_ready(_checksum(leaf))

  sums = [checksum(leaf) for leaf in jax.tree.leaves(tree)]
  return [int(x) for x in jax.device_get(sums)]


def digest(record: Mapping[str, Any]) -> str:
  """Returns the SHA-256 of plain data as JSON, whatever the keys' order."""
  # Read back first, so that tuples and integer keys are what a file gives.
  plain = json.loads(json.dumps(record))
  return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _reason(error: Exception) -> str:
  """Returns an error's first line, cut: TensorStore names all it knows."""
  return (str(error).splitlines() or [type(error).__name__])[0][:300]


@contextlib.contextmanager
def _written(folder: pathlib.Path) -> Iterator[None]:
  """Turns what orbax raises where it cannot write into one OSError."""
  try:
    yield
  except Exception as error:  # of many types: its own, TensorStore's, Python's
    if processes.has_lost_peer(error):
      raise
    raise OSError(
      f"A checkpoint cannot be written to {folder}; the last complete one is "
      "kept, and the same command goes on from it. Make room on the disk, or "
      f"allow writing there. ({_reason(error)})"
    ) from error


class Saver:
  """Saves asynchronously; restores the newest undamaged checkpoint."""

  def __init__(self, folder: pathlib.Path, *, keep: int):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    self._folder = folder
    with _written(folder):
      self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

  def save(
    self,
    number: int,
    leaves: Mapping[str, jax.Array],
    progress: Mapping[str, Any],
  ) -> None:
    """Starts to save a checkpoint.

    Args:
      number: Of the checkpoint; it must grow from call to call.
      leaves: Name -> array.
      progress: As plain data.

    Raises:
      RuntimeError: The number is not above the newest checkpoint's.
      OSError: It cannot be written.
    """
    record: dict[str, Any] = {
      "number": number,
      "progress": progress,
      "checksums": fingerprint(leaves),
    }
    record["digest"] = digest(record)
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(dict(leaves)),
      progress=ocp.args.JsonSave(record),
    )
    with _written(self._folder):
      saved = self._manager.save(number, args=args)
    if not saved:
      raise RuntimeError(
        f"Checkpoint {number} was not saved: its number must be above that of "
        f"the newest checkpoint, {self._manager.latest_step()}."
      )

  def restore(
    self, abstract: Mapping[str, Any]
  ) -> tuple[int, dict[str, jax.Array], dict[str, Any]] | None:
    """Returns (number, leaves, progress) of the newest undamaged checkpoint.

    Args:
      abstract: Name -> shape and sharding of the leaf.

    Returns:
      None if there is no checkpoint.

    Raises:
      ValueError: There are checkpoints, but none can be read.
    """
    errors = {}
    for number in sorted(self._manager.all_steps(), reverse=True):
      got, error = self._read(number, abstract)
      if processes.all_say(got is not None):
        if fingerprint(got.state) == got.progress["checksums"]:
          return number, got.state, got.progress["progress"]
        error = "its arrays do not match their checksums"
      errors[number] = error or "another process cannot read it"
      _LOG.warning(
        "Checkpoint %d cannot be used (%s); trying the one before.",
        number,
        errors[number],
      )
    if errors:
      raise ValueError(
        f"No checkpoint can be used: {json.dumps(errors)}. Remove the "
        "workdir to start again."
      )
    return None

  def _read(self, number: int, abstract: Mapping[str, Any]) -> tuple[Any, str]:
    """Returns a checkpoint, or None and why it cannot be read."""
    try:
      got: Any = self._manager.restore(
        number,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(dict(abstract)),
          progress=ocp.args.JsonRestore(),
        ),
      )
      record = dict(got.progress)
      if record.pop("digest", None) != digest(record):
        raise ValueError("its progress does not match its checksum")
      if record["number"] != number:
        raise ValueError(f"it was saved as checkpoint {record['number']}")
      return got, ""
    except Exception as error:  # orbax raises Exception itself, too
      return None, _reason(error)

  def delete_above(self, number: int) -> None:
    """Deletes checkpoints newer than `number`, which were found damaged."""
    for newer in self._manager.all_steps():
      if newer > number:
        self._manager.delete(newer)

  def wait(self) -> None:
    """Waits until everything is on disk.

    Raises:
      OSError: It cannot be written.
    """
    with _written(self._folder):
      self._manager.wait_until_finished()

  def __enter__(self) -> "Saver":
    return self

  def __exit__(self, kind: Any, error: BaseException | None, *unused) -> None:
    # close() would wait for a dead process that takes part in a save.
    if not processes.has_lost_peer(error):
      # Without close() the process hangs at its exit while a save runs.
      try:
        with _written(self._folder):
          self._manager.close()
      except OSError:
        if error is None:  # else the first error says it
          raise
