"""Face verification: whether two images show one person (the LFW protocol).

Huang et al., "Labeled Faces in the Wild", 2007. Each pair of images gets a
similarity, the cosine of the two embeddings. Accuracy is that of a threshold:
for each of ten folds of pairs the one that is best on the other nine.
"""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from libml.datasets import pairs as pairs_lib

# False accept rates at which the true accept rate is reported.
FALSE_ACCEPT_RATES = (1e-1, 1e-2, 1e-3)
# Those of the curve: ten a decade.
CURVE = tuple(round(float(x), 6) for x in np.geomspace(1e-4, 1, 41))


def similarities(
  embeddings: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
  """Returns the cosine [P] of the embeddings [N, D] of each pair.

  An embedding of zeros is at a right angle to all.
  """
  e = np.asarray(embeddings, np.float64)
  e = e / np.maximum(np.linalg.norm(e, axis=1, keepdims=True), 1e-12)
  return np.sum(e[first] * e[second], axis=1)


def best_threshold(similarity: np.ndarray, same: np.ndarray) -> float:
  """Returns the threshold above which "one person" is most often right.

  Halfway between two similarities, or beyond all; the lowest of equally good.

  Args:
    similarity: [P].
    same: bool [P].
  """
  order = np.argsort(similarity, kind="stable")
  values, kinds = similarity[order], same[order]
  # Right predictions where the first k pairs are taken for two persons.
  right = np.concatenate([[0], np.cumsum(~kinds)])
  right = right + np.concatenate([np.cumsum(kinds[::-1])[::-1], [0]])
  bounds = np.concatenate([[-np.inf], values, [np.inf]])
  right[1:-1][values[1:] == values[:-1]] = -1  # no threshold parts equals
  k = int(np.argmax(right))
  below, above = bounds[k], bounds[k + 1]
  if np.isinf(below):
    return float(above - 1e-6)
  return float(below + 1e-6 if np.isinf(above) else (below + above) / 2)


def fold_accuracies(
  similarity: np.ndarray, same: np.ndarray, *, folds: int = 10
) -> np.ndarray:
  """Returns the accuracy of each fold at the others' best threshold, [F].

  Folds are stretches of pairs in their order, as LFW's list has them.

  Args:
    similarity: [P].
    same: bool [P].
    folds: F.

  Raises:
    ValueError: Fewer pairs than folds, or fewer than 2 folds.
  """
  if not 2 <= folds <= len(same):
    raise ValueError(
      f"folds={folds} of {len(same)} pairs: take 2 to {len(same)}."
    )
  accuracies = []
  for held_out in np.array_split(np.arange(len(same)), folds):
    others = np.ones(len(same), bool)
    others[held_out] = False
    threshold = best_threshold(similarity[others], same[others])
    said = similarity[held_out] > threshold
    accuracies.append(np.mean(said == same[held_out]))
  return np.array(accuracies)


def roc(
  similarity: np.ndarray, same: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns false accept rates, true accept rates and thresholds, falling.

  Args:
    similarity: [P].
    same: bool [P].
  """
  from sklearn import metrics  # takes seconds

  return metrics.roc_curve(same, similarity, drop_intermediate=False)


def true_accept_rate(
  similarity: np.ndarray, same: np.ndarray, false_accept_rate: float
) -> float:
  """Returns the largest true accept rate at most so many false ones allow.

  Args:
    similarity: [P].
    same: bool [P].
    false_accept_rate: Share of the pairs of two persons.
  """
  false, true, _ = roc(similarity, same)
  return float(true[false <= false_accept_rate].max())


def pair_metrics(
  similarity: np.ndarray, same: np.ndarray, *, folds: int = 10
) -> dict[str, float]:
  """Returns what papers report of a list of pairs.

  Args:
    similarity: [P].
    same: bool [P].
    folds: F.

  Returns:
    "accuracy" in [0, 1] and "accuracy_std" over the folds, "auc", "tar_at_far
    0.001" and its like, and "count", the number of pairs.
  """
  from sklearn import metrics

  accuracies = fold_accuracies(similarity, same, folds=folds)
  return {
    "accuracy": float(accuracies.mean()),
    "accuracy_std": float(accuracies.std()),
    "auc": float(metrics.roc_auc_score(same, similarity)),
    **{
      f"tar_at_far_{rate:g}": true_accept_rate(similarity, same, rate)
      for rate in FALSE_ACCEPT_RATES
    },
    "count": len(same),
  }


@dataclasses.dataclass(frozen=True, eq=False)
class Verification:
  """Verification as a problem: embeddings of a batch, metrics of a list.

  Images come with their number in `pairs.images` as label, so that order and
  padding of batches do not matter.

  Attributes:
    pairs: From `pairs.read`.
  """

  pairs: pairs_lib.Pairs

  name: ClassVar[str] = "verification"
  metric: ClassVar[str] = "accuracy"
  targets: ClassVar[tuple[str, ...]] = ("label",)
  hidden: ClassVar[tuple[str, ...]] = ("label",)  # they are no classes

  def loss(
    self, outputs: Mapping[str, Any], batch: Mapping[str, Any]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Raises: pairs measure what classification trains."""
    raise ValueError(
      "Verification has no loss: train with problem.name='classification'."
    )

  def constants(
    self, classes: Sequence[int], num_classes: int
  ) -> dict[str, np.ndarray]:
    """Returns nothing: pairs have no classes."""
    del classes, num_classes
    return {}

  def measure(
    self, outputs: Mapping[str, Any], batch: Mapping[str, Any]
  ) -> dict[str, jax.Array]:
    """Returns the embeddings, and which images they are.

    Args:
      outputs: features [B, D].
      batch: label int32 [B], numbers of images; mask bool [B].

    Raises:
      ValueError: Outputs without features.
    """
    if "features" not in outputs:
      raise ValueError(
        "Verification compares features, and the method's outputs have only "
        f"{sorted(outputs)}; set verification.pairs and verification.root to "
        "None, or take another method."
      )
    return {
      "features": outputs["features"].astype(jnp.float32),
      "number": jnp.where(batch["mask"], batch["label"], -1),
    }

  def summarize(self, measures: Sequence[Any]) -> dict[str, Any]:
    """Returns `pair_metrics`, and "roc".

    The latter has "false_accept_rate", CURVE, and "true_accept_rate" at each.

    Raises:
      ValueError: An image of a pair was not measured.
    """
    features = np.concatenate([m["features"] for m in measures])
    number = np.concatenate([m["number"] for m in measures])
    kept = number >= 0
    missing = set(range(len(self.pairs.images))) - set(number[kept].tolist())
    if missing:
      name = self.pairs.images[min(missing)]
      raise ValueError(
        f"{len(missing)} images of the pairs were not measured, the first"
        f" {name}: measure all of `pairs.images`."
      )
    embeddings = np.zeros((len(self.pairs.images), features.shape[1]))
    embeddings[number[kept]] = features[kept]
    similarity = similarities(embeddings, self.pairs.first, self.pairs.second)
    same = self.pairs.same
    curve = {
      "false_accept_rate": list(CURVE),
      "true_accept_rate": [
        true_accept_rate(similarity, same, rate) for rate in CURVE
      ],
    }
    return {
      **pair_metrics(similarity, same, folds=self.pairs.folds),
      "roc": curve,
    }
