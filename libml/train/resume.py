"""Which leaves of a state a checkpoint holds, and how a run resumes."""

import json
import logging
import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax

from libml import trees
from libml.train import checkpoint
from libml.train import workdirs
from libml.train.progress import Progress
from libml.train.train_state import TrainState

_LOG = logging.getLogger("palimpsest")


def changing(
  state: TrainState, method: Any, optimizer: Any
) -> dict[str, jax.Array]:
  """Returns the leaves that a checkpoint must hold, by name.

  Args:
    state: Of a run.
    method: Its patterns `constant` and `rewrites` match names of leaves.
    optimizer: Knows which parameters are trained.
  """
  trainable = trees.flatten(optimizer.groups.trainable(state.params))

  def changes(name: str) -> bool:
    part, _, leaf = name.partition("/")
    if part == "memory":
      return not re.fullmatch(method.constant, leaf)
    if part == "params":
      return trainable[leaf] or bool(re.fullmatch(method.rewrites, leaf))
    return True

  leaves = trees.flatten(state).items()
  return {name: leaf for name, leaf in leaves if changes(name)}


def frozen(state: TrainState, saved: Mapping[str, Any]) -> int:
  """Returns the checksum of the leaves that a checkpoint does not hold.

  Args:
    state: Of a run.
    saved: Name -> leaf that the checkpoint holds.
  """
  leaves = trees.flatten(state).items()
  left = {name: leaf for name, leaf in leaves if name not in saved}
  return zlib.crc32(repr([*left, *checkpoint.fingerprint(left)]).encode())


def restore(
  state: TrainState,
  saver: checkpoint.Saver,
  saved: Mapping[str, jax.Array],
  facts: Mapping[str, Any],
  *,
  stages: int,
) -> tuple[dict[str, jax.Array], Progress]:
  """Returns leaves and progress of the newest undamaged checkpoint.

  Args:
    state: Before the first stage, placed on the mesh.
    saver: Of the run's checkpoints.
    saved: Name -> leaf that a checkpoint holds.
    facts: Entries "data" and "scenario" of the results, which must not change.
    stages: Number of the run's stages.

  Returns:
    Without a checkpoint {}, and a Progress at the start of the run.

  Raises:
    ValueError: No checkpoint can be read, or the run was started with other
      frozen weights or images.
  """
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    dict(saved),
  )
  found = saver.restore(abstract)
  weights = frozen(state, saved)
  scenario = json.dumps(facts["scenario"], sort_keys=True).encode()
  data = {**facts["data"], "scenario_crc32": zlib.crc32(scenario)}
  data = json.loads(json.dumps(data))  # as a checkpoint gives it back
  if found is None:
    return {}, Progress(frozen=weights, data=data)
  number, leaves, fields = found
  progress = Progress(**fields)
  if progress.frozen != weights:
    raise ValueError(
      "The frozen weights are not those with which this run started, and "
      "checkpoints do not hold frozen weights. Give the old file as "
      "init_checkpoint again, or take another --workdir."
    )
  if progress.data != data:
    raise ValueError(
      "The images are not those with which this run started: "
      f"{'; '.join(workdirs.differences(progress.data, data))}. Restore them, "
      "or take another --workdir."
    )
  saver.delete_above(number)
  if progress.stage == stages:
    _LOG.info("Using the model of the finished run.")
  else:
    where = progress.stage + 1, progress.steps
    _LOG.info("Resuming in stage %d, after step %d.", *where)
  return leaves, progress
