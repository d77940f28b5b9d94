"""Relearning: how soon some images bring a forgotten class back."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from libml import datasets
from libml import trees
from libml.audit import predictions
from libml.devices import sharding
from libml.pipeline import stage_data
from libml.problems import losses

# Share of the first model's accuracy at which its classes count as relearned.
SHARE = 0.9
# If the first model regains a smaller share, the steps have broken the network.
LEAST = 0.5
# Most test images on which accuracy is measured during relearning.
MOST_TESTED = 500

# Adapters are not trained: models of all methods relearn with the same weights.
_RESTS = r".*/lora_[ab]"
# Seeds the batches, as the number of a round; no method has so many rounds.
_ROUND = 1_000_000


def few(subset: datasets.Subset, count: int, seed: int) -> datasets.Subset:
  """Returns at most `count` random images of each class.

  Args:
    subset: The images.
    count: Images a class.
    seed: Decides which.
  """
  parts = []
  for label in np.unique(subset.labels):
    images = subset.select([int(label)])
    parts.append(images.take_per_class(min(count, len(images)), seed))
  return datasets.Subset(tuple(p for part in parts for p in part.pieces))


def lesson(
  forgotten: datasets.Subset, kept: datasets.Subset, shots: int, seed: int
) -> dict[str, datasets.Subset]:
  """Returns the images of relearning: as many retained as forgotten ones.

  Args:
    forgotten: Training images of forgotten classes.
    kept: Training images of retained classes.
    shots: Most images of each forgotten class.
    seed: Of the draw.

  Returns:
    "forgotten" and "kept".
  """
  gone = few(forgotten, shots, seed)
  classes = len(np.unique(kept.labels))
  same = few(kept, -(-len(gone) // classes), seed)
  same = same.take(min(len(gone), len(same)), seed)
  return {"forgotten": gone, "kept": same}


def neutral(
  params: Any, heads: Sequence[str], goes: np.ndarray, stays: np.ndarray
) -> Any:
  """Returns parameters whose heads know nothing of some classes.

  The heads' columns of these classes become the mean of the columns of others.
  Relearning asks what the features still hold; without this, a head could hide
  a class by a column that no number of steps brings back.

  Args:
    params: All parameters; the last axis of the heads' leaves is classes.
    heads: Names of the heads in the parameter tree.
    goes: bool [C], classes whose columns are replaced.
    stays: bool [C], classes whose columns are averaged.
  """

  def column(name, leaf):
    if trees.holder(name, heads) is None or leaf.shape[-1:] != goes.shape:
      return leaf
    shape = (1,) * (leaf.ndim - 1) + goes.shape
    gone, kept = goes.reshape(shape), stays.reshape(shape)
    mean = jnp.mean(leaf, axis=-1, keepdims=True, where=kept)
    return jnp.where(gone, mean, leaf)

  return trees.map_named(column, params)


def within_reach(
  curve: Sequence[Sequence[float]], accuracy: float
) -> tuple[float | None, int | None]:
  """Returns (target, steps) from the first model's own relearning.

  A few images may not restore the full accuracy, not even in a network that
  forgot nothing. Then the target is SHARE of the best accuracy that the first
  model regains, and steps are those that it needs.

  Args:
    curve: Of the first model: [[steps, accuracy], ...].
    accuracy: The first model's, before its head was made to forget.

  Returns:
    (None, None) if it regains less than LEAST of its accuracy.
  """
  best = max(found for _, found in curve)
  if best < LEAST * accuracy:
    return None, None
  target = SHARE * best
  return target, next(int(n) for n, found in curve if found >= target)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Relearning:
  """Trains models again on what they forgot, each in the same way.

  Attributes:
    method: Of the run; its model and its problem's loss are used.
    data: Its training images have the roles of `lesson`.
    tests: Test images of the forgotten classes.
    num_classes: C, columns of the head.
    forgotten: Class ids.
    retained: Class ids.
    known: Class ids that a prediction may name.
    lr: Learning rate of Adam.
    max_steps: Most steps.
  """

  method: Any
  data: stage_data.StageData
  tests: datasets.Subset
  num_classes: int
  forgotten: Sequence[int]
  retained: Sequence[int]
  known: Sequence[int]
  lr: float
  max_steps: int

  def curve(
    self,
    params: Any,
    memory: Any,
    target: float | None,
    *,
    name: str,
  ) -> dict[str, Any]:
    """Fine-tunes a copy of all weights until the forgotten classes are back.

    Each batch mixes forgotten and retained images. Accuracy is measured after
    each of the first 20 steps, and then each time the number of steps has grown
    by a tenth, so the result is exact to a tenth.

    Args:
      params: On the mesh; they stay as they are.
      memory: Of the method.
      target: Accuracy at which they count as relearned; None: all steps are
        taken.
      name: Name of the model, for `data.on_work`.

    Returns:
      "steps" to the target, None if max_steps do not reach it; "curve":
      [[steps, accuracy], ...].

    Raises:
      stage_data.Stopped: The process was asked to stop.
    """
    data, tx = self.data, optax.adam(self.lr)
    masks = [
      np.isin(np.arange(self.num_classes), classes)
      for classes in (self.forgotten, self.retained, self.known)
    ]
    state = self._begin(params, tx, masks[:2])
    step_fn = data.compiled(
      "audit/relearn",
      self._step(tx),
      donate_argnums=0,
      out_shardings=jax.tree.map(lambda x: x.sharding, state),
    )
    roles = {"train": ("forgotten", "kept")}
    batches = data.stream(roles, _ROUND, 0)
    curve = [[0, self._accuracy(state["params"], memory)]]
    for step in range(1, self.max_steps + 1):
      if target is not None and curve[-1][1] >= target:
        break
      data.on_work(
        f"audit of the model {name}, relearning", step - 1, self.max_steps
      )
      state = step_fn(state, next(batches)["train"], masks[2])
      if step == self.max_steps or step % max(1, step // 10) == 0:
        accuracy = self._accuracy(state["params"], memory)
        curve.append([step, accuracy])
      if data.should_stop():
        raise stage_data.Stopped
    last, accuracy = curve[-1]
    back = target is not None and accuracy >= target
    return {"steps": last if back else None, "curve": curve}

  def _begin(self, params, tx, masks):
    heads = self.method.model.class_heads

    def begin(params, goes, stays):
      params = jax.tree.map(jnp.copy, params)
      params = neutral(params, heads, goes, stays)
      return {"params": params, "moments": tx.init(params)}

    where = jax.tree.map(lambda x: x.sharding, params)
    whole = sharding.replicated(self.data.mesh)
    moments = optax.tree.map_params(
      tx,
      lambda _, place: place,
      jax.eval_shape(tx.init, params),
      where,
      transform_non_params=lambda _: whole,
    )
    return self.data.compiled(
      "audit/begin",
      begin,
      out_shardings={"params": where, "moments": moments},
    )(params, *masks)

  def _step(self, tx):
    # The closure must not hold self, which is another object in each stage.
    method = self.method

    def loss(params, batch, known):
      outputs = method.apply(params, batch)
      logits = losses.mask_logits(outputs["logits"], known)
      value, _ = method.problem.loss({**outputs, "logits": logits}, batch)
      return value

    def step(state, batch, known):
      params = state["params"]
      grads = jax.grad(loss)(params, batch, known)
      grads = trees.map_named(
        lambda name, g: jnp.zeros_like(g) if re.fullmatch(_RESTS, name) else g,
        grads,
      )
      updates, moments = tx.update(grads, state["moments"], params)
      params = optax.apply_updates(params, updates)
      return {"params": params, "moments": moments}

    return step

  @functools.cached_property
  def _tests(self):
    return predictions.placed(self.data, self.tests)

  def _accuracy(self, params, memory):
    parts = [
      jax.device_get(
        predictions.ask(
          self.method, self.data, batch, params=params, memory=memory
        )
      )
      for batch in self._tests
    ]
    logits = np.concatenate([part["logits"] for part in parts])
    found = {
      "logits": np.nan_to_num(logits)[: len(self.tests)],
      "label": self.tests.labels,
    }
    return predictions.accuracy(found, self.known)
