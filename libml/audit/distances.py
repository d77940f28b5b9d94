"""Distances of a model from a retrained one, and from the first one."""

import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from libml.audit import predictions

Found = Mapping[str, np.ndarray]

# Smaller probabilities count as this one, or one prediction would decide the
# mean.
_SMALLEST = 1e-12


def kl(target: np.ndarray, prediction: np.ndarray) -> float:
  """Returns the mean KL(target || prediction) in nats.

  Args:
    target: Probabilities, [N, C].
    prediction: Probabilities, [N, C].
  """
  p, q = (np.maximum(x, _SMALLEST) for x in (target, prediction))
  return float(np.mean(np.sum(target * (np.log(p) - np.log(q)), axis=1)))


def to_retrained(
  model: Mapping[str, Found],
  retrained: Mapping[str, Found],
  known: Sequence[int],
) -> dict[str, Any]:
  """Returns how far a model is from one that never saw what was forgotten.

  The gaps are differences of accuracy, on the training images to forget and to
  retain and on all test images. Their mean is the average gap (Fan et al.,
  "SalUn", ICLR 2024); the product of 1 - |gap| is the tug-of-war (Zhao et al.,
  "What makes unlearning hard and what to do about it", NeurIPS 2024).

  Args:
    model: Predictions on "forget", "retain", "forget_test" and "retain_test".
    retrained: Those of the model that never saw what was forgotten.
    known: Classes that a prediction may name.

  Returns:
    "gaps", role -> accuracy of the model minus that of the retrained one;
    "average_gap"; "tug_of_war", at best 1; "kl", role -> KL(retrained || model)
    on the test images, in nats.
  """
  gaps = {
    role: predictions.accuracy(model[role], known)
    - predictions.accuracy(retrained[role], known)
    for role in ("forget", "retain")
  }
  tests = [
    predictions.accuracy(
      {
        key: np.concatenate(
          [found[f"{role}_test"][key] for role in ("forget", "retain")]
        )
        for key in ("logits", "label")
      },
      known,
    )
    for found in (model, retrained)
  ]
  gaps["test"] = tests[0] - tests[1]
  sizes = [abs(gap) for gap in gaps.values()]
  return {
    "gaps": gaps,
    "average_gap": sum(sizes) / len(sizes),
    "tug_of_war": math.prod(1 - size for size in sizes),
    "kl": {
      role: kl(
        *(
          predictions.probabilities(found[f"{role}_test"]["logits"], known)
          for found in (retrained, model)
        )
      )
      for role in ("forget", "retain")
    },
  }


def drift(before: Found, after: Found) -> dict[str, float]:
  """Returns how far the features of the same images moved.

  Args:
    before: "features" [N, D] and "label" [N].
    after: The same, row by row.

  Returns:
    "cosine", the mean cosine of an image's features before and after;
    "mean_change", the mean over classes of |m' - m| / |m|, m and m' a class's
    mean feature before and after.
  """
  x, y = before["features"], after["features"]
  lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
  cosines = np.sum(x * y, axis=1) / np.maximum(lengths, 1e-12)
  changes = []
  for label in np.unique(before["label"]):
    rows = before["label"] == label
    mean, moved = x[rows].mean(axis=0), y[rows].mean(axis=0)
    size = max(float(np.linalg.norm(mean)), 1e-12)
    changes.append(float(np.linalg.norm(moved - mean)) / size)
  return {
    "cosine": float(cosines.mean()),
    "mean_change": sum(changes) / len(changes),
  }
