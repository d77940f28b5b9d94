"""One label an image: cross entropy and accuracy."""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from libml.problems import losses


@dataclasses.dataclass(frozen=True)
class Classification:
  """Classification by `outputs["logits"]` [B, C] against `batch["label"]`.

  Evaluation does not hide labels: published accuracies of heads with a margin
  are measured with the margin on the true class.
  """

  name: ClassVar[str] = "classification"
  metric: ClassVar[str] = "accuracy"
  targets: ClassVar[tuple[str, ...]] = ("label",)
  hidden: ClassVar[tuple[str, ...]] = ()

  def loss(
    self, outputs: Mapping[str, Any], batch: Mapping[str, Any]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the mean cross entropy, and the batch's accuracy.

    Args:
      outputs: logits [B, C]; optionally loss [B], a loss of the model's own
        that replaces the cross entropy.
      batch: label int32 [B], or probabilities [B, C].
    """
    logits, label = outputs["logits"], batch["label"]
    name = "head_loss" if "loss" in outputs else "cross_entropy"
    value = _row_losses(outputs, logits, label).mean()
    truth = label if label.ndim == 1 else jnp.argmax(label, axis=-1)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == truth)
    return value, {name: value, "train_accuracy": accuracy}

  def constants(
    self, classes: Sequence[int], num_classes: int
  ) -> dict[str, np.ndarray]:
    """Returns "allowed", bool [C]: the classes that a prediction may name."""
    return {"allowed": np.isin(np.arange(num_classes), classes)}

  def measure(
    self, outputs: Mapping[str, Any], batch: Mapping[str, Any]
  ) -> dict[str, jax.Array]:
    """Returns "hits", "loss" and "count", sums over rows with mask True.

    Args:
      outputs: logits [B, C]; optionally loss [B], as in `loss`.
      batch: label int32 [B], mask bool [B], allowed bool [C] of `constants`.
    """
    logits = losses.mask_logits(outputs["logits"], batch["allowed"])
    hits = jnp.argmax(logits, axis=-1) == batch["label"]
    loss = _row_losses(outputs, logits, batch["label"])
    mask = batch["mask"]
    return {
      "hits": jnp.sum(hits & mask, dtype=jnp.int32),
      "loss": jnp.sum(jnp.where(mask, loss, 0.0)),
      "count": jnp.sum(mask, dtype=jnp.int32),
    }

  def summarize(self, measures: Sequence[Any]) -> dict[str, float]:
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


def _row_losses(
  outputs: Mapping[str, Any], logits: jax.Array, label: jax.Array
) -> jax.Array:
  """Returns the loss of each row, float32 [B]."""
  if "loss" in outputs:
    return outputs["loss"].astype(jnp.float32)
  return losses.cross_entropy(logits, label)
