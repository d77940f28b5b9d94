"""Face verification: whether two images show one person (the LFW protocol).

Huang et al., "Labeled Faces in the Wild", 2007. The similarity of a pair of
images is the cosine of their embeddings. A pair above a threshold is predicted
to show one person. For each of ten folds of pairs, accuracy is measured with
the threshold that is best on the other nine folds.
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

# False accept rates at which the true accept rate is a metric.
FALSE_ACCEPT_RATES = (1e-1, 1e-2, 1e-3)
# False accept rates of the ROC curve in the results: ten per decade.
CURVE = tuple(round(float(x), 6) for x in np.geomspace(1e-4, 1, 41))


def similarities(
  embeddings: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
  """Returns the cosine of the two embeddings of each pair, float64 [P].

  An embedding of zeros has the cosine 0 with all others.

  Args:
    embeddings: [N, D].
    first: int [P], index of each pair's first image.
    second: int [P], index of each pair's second image.
  """
  e = np.asarray(embeddings, np.float64)
  e = e / np.maximum(np.linalg.norm(e, axis=1, keepdims=True), 1e-12)
  return np.sum(e[first] * e[second], axis=1)


def best_threshold(similarity: np.ndarray, same: np.ndarray) -> float:
  """Returns the threshold with the most correct predictions.

  It is halfway between two neighbouring similarities, or 1e-6 below or above
  all of them. Of equally good thresholds it is the lowest.

  Args:
    similarity: [P].
    same: bool [P], whether a pair shows one person.
  """
  order = np.argsort(similarity, kind="stable")
  values, kinds = similarity[order], same[order]
  # Correct predictions if the k lowest pairs are predicted to show two persons.
  right = np.concatenate([[0], np.cumsum(~kinds)])
  right = right + np.concatenate([np.cumsum(kinds[::-1])[::-1], [0]])
  bounds = np.concatenate([[-np.inf], values, [np.inf]])
  # No threshold lies between equal similarities.
  right[1:-1][values[1:] == values[:-1]] = -1
  k = int(np.argmax(right))
  below, above = bounds[k], bounds[k + 1]
  if np.isinf(below):
    return float(above - 1e-6)
  return float(below + 1e-6 if np.isinf(above) else (below + above) / 2)


def fold_accuracies(
  similarity: np.ndarray, same: np.ndarray, *, folds: int = 10
) -> np.ndarray:
  """Returns the accuracy of each fold at the other folds' best threshold, [F].

  A fold is a run of consecutive pairs, as in LFW's list.

  Args:
    similarity: [P].
    same: bool [P], whether a pair shows one person.
    folds: F.

  Raises:
    ValueError: There are fewer pairs than folds, or fewer than 2 folds.
  """
  if not 2 <= folds <= len(same):
    raise ValueError(
      f"folds={folds} of {len(same)} pairs must be in 2 to {len(same)}."
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
  """Returns the ROC curve: false and true accept rates at falling thresholds.

  Args:
    similarity: [P].
    same: bool [P], whether a pair shows one person.

  Returns:
    False accept rates, true accept rates and thresholds, each [K].
  """
  from sklearn import metrics  # The import takes seconds.

  return metrics.roc_curve(same, similarity, drop_intermediate=False)


def true_accept_rate(
  similarity: np.ndarray, same: np.ndarray, false_accept_rate: float
) -> float:
  """Returns the largest true accept rate within a false accept rate.

  Args:
    similarity: [P].
    same: bool [P], whether a pair shows one person.
    false_accept_rate: Largest share of the pairs of two persons that may be
      accepted as one person.
  """
  false, true, _ = roc(similarity, same)
  return float(true[false <= false_accept_rate].max())


def pair_metrics(
  similarity: np.ndarray, same: np.ndarray, *, folds: int = 10
) -> dict[str, float]:
  """Returns the usual metrics of a list of pairs.

  Args:
    similarity: [P].
    same: bool [P], whether a pair shows one person.
    folds: F.

  Returns:
    "accuracy" and "accuracy_std", the mean in [0, 1] and the standard deviation
    over the folds; "auc", the area under the ROC curve; "tar_at_far_0.001" and
    so on for FALSE_ACCEPT_RATES; and "count", the number of pairs.
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

  The label of an image is its index in `pairs.images`, so the order of images
  in batches does not matter.

  Attributes:
    pairs: The list of pairs, from `pairs.read`.
  """

  pairs: pairs_lib.Pairs

  name: ClassVar[str] = "verification"
  metric: ClassVar[str] = "accuracy"
  targets: ClassVar[tuple[str, ...]] = ("label",)
  hidden: ClassVar[tuple[str, ...]] = ("label",)  # Labels are not classes.

  def loss(
    self, outputs: Mapping[str, Any], batch: Mapping[str, Any]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Raises an error, since pairs only measure a model that has been trained.

    Raises:
      ValueError: Always.
    """
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
    """Returns "features", float32 [B, D], and "number", their images' index.

    Args:
      outputs: features [B, D].
      batch: label int32 [B], index in `pairs.images`; mask bool [B]. The index
        of padding becomes -1.

    Raises:
      ValueError: The outputs have no features.
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

    "roc" has the lists "false_accept_rate" (CURVE) and "true_accept_rate".

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
