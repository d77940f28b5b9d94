"""The images of one stage, as batches on the device mesh."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from libml import datasets
from libml.devices import sharding
from libml.devices.compiled import Compiled


class Stopped(Exception):
  """The process was asked to stop in the middle of a pass over images."""


@dataclasses.dataclass(frozen=True, eq=False)
class StageData:
  """Batches of a stage's images, for the loop and the method's hooks.

  Attributes:
    train: Role (such as "forget" or "retain") -> its training images.
    stage: Index of the stage, part of every seed.
    preprocess: The training and evaluation chains.
    batch_size: Number of images of a batch, over all processes.
    seed: The run's seed.
    mesh: The device mesh.
    compiled: The run's compiled functions.
    mixing: Mixup, CutMix and label smoothing; None: off.
    epoch_steps: Role -> steps of one epoch; other roles: see steps_per_epoch.
    should_stop: Called after each batch of a pass over images.
    on_pass: Called as (stage, name, None) when a pass over images begins and as
      (stage, name, result) when it has ended.
    on_work: Called as (what, done, total) for each batch of a pass.
    tables: Role -> {name: array [N, ...]}, whose rows join the N images of the
      role in training batches.
  """

  train: Mapping[str, datasets.Subset]
  stage: int
  preprocess: Any
  batch_size: int
  seed: int
  mesh: jax.sharding.Mesh
  compiled: Compiled
  mixing: Any = None
  epoch_steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
  should_stop: Callable[[], bool] = lambda: False
  on_pass: Callable[[int, str, Any], None] = lambda *_: None
  on_work: Callable[..., None] = lambda *_: None
  tables: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(
    default_factory=dict
  )

  # Name of a round -> the stream that later rounds of this name continue.
  _open: dict[str, Any] = dataclasses.field(default_factory=dict, init=False)

  def subset(self, roles: Sequence[str]) -> datasets.Subset:
    """Returns the images of some roles, one after the other."""
    return functools.reduce(operator.add, (self.train[r] for r in roles))

  def steps_per_epoch(self, roles: Sequence[str]) -> int:
    """Returns the number of whole batches in the roles' images, at least 1.

    If epoch_steps has some of the roles, it is the largest of their numbers.
    """
    given = [self.epoch_steps[r] for r in roles if r in self.epoch_steps]
    if given:
      return max(given)
    return max(1, len(self.subset(roles)) // self.batch_size)

  def batches(
    self, rounds: Sequence[Any], number: int, start: int
  ) -> Iterator[dict[str, Any]]:
    """Returns the batches of a round of the stage, from step `start` on.

    Args:
      rounds: The rounds of the stage (`method.Round`).
      number: Index of the round.
      start: Number of steps of the round to skip.
    """
    name = rounds[number].name
    alike = [i for i, r in enumerate(rounds) if r.name == name]
    if not rounds[number].continues:
      return self.stream(rounds[number].streams, number, start)
    if name not in self._open:
      done = sum(rounds[i].steps for i in alike if i < number)
      streams = rounds[number].streams
      self._open[name] = self.stream(streams, alike[0], done + start)
    return self._open[name]

  def stream(
    self, streams: Mapping[str, Sequence[str]], number: int, start: int
  ) -> Iterator[dict[str, Any]]:
    """Yields batches of shuffled images from step `start` on, without end.

    Args:
      streams: Name in the batch -> roles whose images are mixed.
      number: Index of the round, part of the seed.
      start: Number of steps to skip.
    """
    from libml.pipeline import (
      streams as pipelines,
    )  # TensorFlow: only when needed

    index, count = sharding.batch_part(self.mesh)
    parts = {
      name: pipelines.train_stream(
        self.subset(roles),
        self.preprocess,
        batch_size=self.batch_size,
        seed=(self.seed, self.stage, number, position),
        start_step=start,
        process_index=index,
        process_count=count,
        mixing=self.mixing,
        table=self._table(roles),
      )
      for position, (name, roles) in enumerate(streams.items())
    }
    while True:
      yield {
        name: sharding.place_batch(next(part), self.mesh)
        for name, part in parts.items()
      }

  def _table(self, roles: Sequence[str]) -> dict[str, np.ndarray]:
    tables = [self.tables.get(role, {}) for role in roles]
    names = set.intersection(*(set(table) for table in tables))
    return {
      name: np.concatenate([table[name] for table in tables])
      for name in sorted(names)
    }

  def tabulate(
    self, fn: Callable[..., Mapping[str, Any]], state: Any, *roles: str
  ) -> "StageData":
    """Returns the data with the results of fn(params, memory, batch) added.

    The results for an image join it in every training batch, so that fn runs
    once per image and not in each step. If images are augmented, they differ
    from epoch to epoch; then no results are added.

    Args:
      fn: Returns {name: array [B, ...]}.
      state: The TrainState with params and memory for fn.
      *roles: Roles to whose images fn is applied.

    Raises:
      Stopped: The process was asked to stop.
    """
    if self.preprocess.augments:
      return self
    whole = sharding.replicated(self.mesh)
    ask = self.compiled("tabulate", fn, out_shardings=whole)
    tables = dict(self.tables)
    self.on_pass(self.stage, "tabulate", None)
    for role in roles:
      parts = []
      for batch in self.sweep(self.train[role], what="tabulate"):
        batch = sharding.place_batch(batch, self.mesh)
        found = ask(state.params, state.memory, batch)
        parts.append(jax.device_get(found))
        if self.should_stop():
          raise Stopped
      count = len(self.train[role])
      tables[role] = {
        name: np.concatenate([part[name] for part in parts])[:count]
        for name in parts[0]
      }
    self.on_pass(self.stage, "tabulate", tables)
    return dataclasses.replace(self, tables=tables)

  def sweep(
    self, subset: datasets.Subset, *, augment: bool = False, what: str = ""
  ) -> Iterator[dict[str, Any]]:
    """Yields batches of every image once, on the host; see `streams.sweep`.

    Args:
      subset: The images.
      augment: Whether to use the training chain, with the same seeds each time.
      what: Name of the work, for `on_work`; "": it is not called.
    """
    from libml.pipeline import streams as pipelines

    index, count = sharding.batch_part(self.mesh)
    batches = pipelines.sweep(
      subset,
      self.preprocess,
      batch_size=self.batch_size,
      process_index=index,
      process_count=count,
      augment=augment,
    )
    total = -(-len(subset) // self.batch_size)
    for number, batch in enumerate(batches):
      if what:
        self.on_work(what, number, total)
      yield batch

  def accumulate(
    self,
    name: str,
    fn: Callable[..., Any],
    state: Any,
    *roles: str,
    augment: bool = False,
  ) -> Any:
    """Returns the sum of fn(params, memory, batch) over the roles' images.

    Args:
      name: Name of the compiled function.
      fn: Returns sums over the rows of a batch where batch["mask"] is True.
      state: The TrainState with params and memory for fn.
      *roles: Roles whose images are summed over, each image once.
      augment: Whether to use the training chain, as in `sweep`.

    Raises:
      Stopped: The process was asked to stop.
    """
    everywhere = sharding.replicated(self.mesh)
    add = self.compiled(
      name,
      functools.partial(_added, fn=fn),
      donate_argnums=0,
      out_shardings=everywhere,
    )
    total = None
    self.on_pass(self.stage, name, None)
    for batch in self.sweep(self.subset(roles), augment=augment, what=name):
      batch = sharding.place_batch(batch, self.mesh)
      if total is None:
        shapes = jax.eval_shape(fn, state.params, state.memory, batch)
        # Make zeros on the devices: with zeros from the host, the processes
        # would send each other their arrays to compare them.
        zeros = functools.partial(_zeros, shapes)
        total = self.compiled(
          f"{name}_zeros", zeros, out_shardings=everywhere
        )()
      total = add(total, state.params, state.memory, batch)
      if self.should_stop():
        raise Stopped
    self.on_pass(self.stage, name, total)
    return total


def _added(total: Any, params: Any, memory: Any, batch: Any, *, fn: Any) -> Any:
  return jax.tree.map(jnp.add, total, fn(params, memory, batch))


def _zeros(shapes: Any) -> Any:
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
