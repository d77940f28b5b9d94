"""Face verification: whether two images show one person (the LFW protocol).

Huang et al., "Labeled Faces in the Wild", 2007. Each pair of images gets a
similarity, the cosine of the two embeddings. Accuracy is that of a threshold:
for each of ten folds of pairs the one that is best on the other nine.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from libml import datasets
from libml import scenarios
from libml.datasets import files
from libml.datasets import pairs as pairs_lib

# False accept rates at which the true accept rate is reported.
FALSE_ACCEPT_RATES = (1e-1, 1e-2, 1e-3)
# Those of the curve: ten a decade.
CURVE = tuple(round(float(x), 6) for x in np.geomspace(1e-4, 1, 41))
# Name of the probe.
PROBE = "verification"


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
  # Right answers where the first k pairs are taken for two persons.
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


def figures(
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
  """Verification as a problem: embeddings of a batch, figures of a list.

  Images come with their number in `pairs.images` as label, so that order and
  padding of batches do not matter.

  Attributes:
    pairs: From `pairs.read`.
  """

  pairs: pairs_lib.Pairs

  def loss(
    self, outputs: Mapping[str, Any], batch: Mapping[str, Any]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Raises: pairs measure what classification trains."""
    raise ValueError(
      "Verification has no loss: train with problem.name='classification'."
    )

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

  def report(self, measures: Sequence[Any]) -> dict[str, Any]:
    """Returns `figures` of the pairs, and "roc".

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
    return {**figures(similarity, same, folds=self.pairs.folds), "roc": curve}


def attach(
  scenario: scenarios.Scenario,
  *,
  pairs: str | pathlib.Path | None = None,
  root: str | pathlib.Path | None = None,
  folds: int = 10,
) -> scenarios.Scenario:
  """Adds the probe "verification" to a scenario's last stage.

  Where something is measured before the first stage, it is measured there, too.
  It stands beside the matrix and the summaries, not in them.

  Args:
    scenario: Its last stage has probes of its own.
    pairs: List of pairs (libml/datasets/pairs.py); None: no verification.
    root: Folder of the images.
    folds: As in `pairs.read`.

  Raises:
    FileNotFoundError: No such list, or images that do not exist.
    ValueError: A list without a folder or the reverse, an image that cannot be
      decoded, or what `pairs.read` raises.
  """
  if (pairs is None) != (root is None):
    missing = "root, the folder of the images" if pairs else "pairs, their list"
    raise ValueError(
      f"verification.pairs={pairs!r} with verification.root={root!r}: give "
      f"verification.{missing}, too, or neither."
    )
  if pairs is None or root is None:
    return scenario
  found = pairs_lib.read(pairs, root, folds=folds)
  images = np.array([str(path) for path in found.images], object)
  files.check_decodable(images)
  numbers = np.arange(len(images), dtype=np.int32)
  split = datasets.Split(images, numbers, encoding="path")
  probe = scenarios.Probe(
    datasets.Subset.of(split), classes=(), problem=Verification(found)
  )
  added = {PROBE: probe}
  last = scenario.stages[-1]
  last = dataclasses.replace(last, probes={**last.probes, **added})
  description = {
    "pairs": len(found.same),
    "folds": found.folds,
    "pairs_crc32": found.checksum,
    "images": split.fingerprint,
  }
  return dataclasses.replace(
    scenario,
    stages=(*scenario.stages[:-1], last),
    before={**scenario.before, **added} if scenario.before else {},
    description={**scenario.description, PROBE: description},
  )
