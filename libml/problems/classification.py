"""One label an image: cross entropy and accuracy."""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from libml import losses


@dataclasses.dataclass(frozen=True)
class Classification:
  """Classification by `outputs["logits"]` [B, C] against `batch["label"]`."""

  def loss(
    self, outputs: Mapping[str, Any], batch: Mapping[str, Any]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the mean cross entropy, and the batch's accuracy.

    Args:
      outputs: logits [B, C].
      batch: label int32 [B], or probabilities [B, C].
    """
    logits, label = outputs["logits"], batch["label"]
    value = losses.cross_entropy(logits, label).mean()
    truth = label if label.ndim == 1 else jnp.argmax(label, axis=-1)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == truth)
    return value, {"cross_entropy": value, "train_accuracy": accuracy}

  def measure(
    self, outputs: Mapping[str, Any], batch: Mapping[str, Any]
  ) -> dict[str, jax.Array]:
    """Returns sums over the rows that batch["mask"] keeps.

    Args:
      outputs: logits [B, C].
      batch: label int32 [B], mask bool [B], allowed bool [C]: the classes
        that an answer may name.
    """
    logits = losses.mask_logits(outputs["logits"], batch["allowed"])
    hits = jnp.argmax(logits, axis=-1) == batch["label"]
    loss = losses.cross_entropy(logits, batch["label"])
    mask = batch["mask"]
    return {
      "hits": jnp.sum(hits & mask, dtype=jnp.int32),
      "loss": jnp.sum(jnp.where(mask, loss, 0.0)),
      "count": jnp.sum(mask, dtype=jnp.int32),
    }

  def report(self, measures: Sequence[Any]) -> dict[str, float]:
    """Returns accuracy in [0, 1], mean loss, and the number of images."""
    total = {
      name: np.sum([m[name] for m in measures], dtype=np.float64)
      for name in ("hits", "loss", "count")
    }
    return {
      "accuracy": float(total["hits"] / total["count"]),
      "loss": float(total["loss"] / total["count"]),
      "count": int(total["count"]),
    }
