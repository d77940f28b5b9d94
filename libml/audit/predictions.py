"""Predictions of a model: features and logits of images, on the host."""

import functools
import operator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from libml import datasets
from libml.devices import sharding
from libml.pipeline import stage_data


def placed(
  data: stage_data.StageData, subset: datasets.Subset
) -> list[dict[str, jax.Array]]:
  """Returns all batches of one pass over the images, on the mesh."""
  return [sharding.place_batch(b, data.mesh) for b in data.sweep(subset)]


def ask(
  method: Any,
  data: stage_data.StageData,
  batch: Any,
  *,
  params: Any,
  memory: Any,
) -> dict[str, jax.Array]:
  """Returns "features" [B, D] and "logits" [B, C] of one batch.

  Targets are removed from the batch first; otherwise a head with a margin would
  put it on the true class.
  """
  targets = method.problem.targets

  def predict(params, memory, batch):
    inputs = {name: x for name, x in batch.items() if name not in targets}
    outputs = method.predict(params, memory, inputs)[""]
    return {
      name: outputs[name].astype(jnp.float32) for name in ("features", "logits")
    }

  whole = sharding.replicated(data.mesh)
  step = data.compiled("audit/answer", predict, out_shardings=whole)
  return step(params, memory, batch)


def collect(
  method: Any,
  data: stage_data.StageData,
  images: Mapping[str, datasets.Subset],
  *,
  params: Any,
  memory: Any,
  name: str,
) -> dict[str, dict[str, np.ndarray]]:
  """Returns "features" [N, D], "logits" [N, C] and "label" [N] of images.

  NaN becomes 0, so a network that has diverged counts as one that knows
  nothing.

  Args:
    method: Of the run.
    data: Reads images.
    images: Role -> images; the result has the same roles.
    params: On the mesh.
    memory: Of the method.
    name: Of the model, for `data.on_work`.

  Raises:
    stage_data.Stopped: The process was asked to stop.
  """
  parts = []
  whole = functools.reduce(operator.add, images.values())
  for batch in data.sweep(whole, what=f"audit of the model {name}"):
    batch = sharding.place_batch(batch, data.mesh)
    found = ask(method, data, batch, params=params, memory=memory)
    parts.append(jax.device_get(found))
    if data.should_stop():
      raise stage_data.Stopped
  found = {
    name: np.nan_to_num(np.concatenate([part[name] for part in parts]))
    for name in parts[0]
  }
  ends = np.cumsum([len(subset) for subset in images.values()])
  return {
    role: {
      "label": subset.labels,
      **{
        name: rows[end - len(subset) : end].astype(np.float64)
        for name, rows in found.items()
      },
    }
    for (role, subset), end in zip(images.items(), ends, strict=True)
  }


def probabilities(logits: np.ndarray, known: Sequence[int]) -> np.ndarray:
  """Returns the softmax [N, C] over the columns `known`; 0 in the others.

  Args:
    logits: [N, C].
    known: Columns.
  """
  z = np.full(logits.shape, -np.inf)
  z[:, known] = logits[:, known]
  z = np.exp(z - z.max(axis=1, keepdims=True))
  return z / z.sum(axis=1, keepdims=True)


def accuracy(found: Mapping[str, np.ndarray], known: Sequence[int]) -> float:
  """Returns the accuracy in [0, 1] of the largest logit among some columns.

  Args:
    found: "logits" [N, C] and "label" [N].
    known: Columns.
  """
  columns = np.asarray(known)
  named = columns[np.argmax(found["logits"][:, columns], axis=1)]
  return float(np.mean(named == found["label"]))
