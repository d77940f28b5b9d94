"""Linear probes: what a new classifier finds in frozen features."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Found = Mapping[str, np.ndarray]

# If the first model's accuracy exceeds the floor by less, `left` is undefined.
_LEAST = 0.05


def fit(features: np.ndarray, label: np.ndarray, **options: Any) -> Any:
  """Returns a logistic regression on standardized features.

  Its penalty is scikit-learn's own (C=1); features of any scale are alike.

  Args:
    features: [N, D].
    label: [N], at least two classes.
    **options: Of LogisticRegression.
  """
  from sklearn import linear_model  # takes seconds
  from sklearn import pipeline
  from sklearn import preprocessing

  return pipeline.make_pipeline(
    preprocessing.StandardScaler(),
    linear_model.LogisticRegression(max_iter=10_000, **options),
  ).fit(features, label)


def head(found: Mapping[str, Found]) -> dict[str, float]:
  """Fits a new head over all classes on frozen features.

  This is the recovery test of the GS-LoRA code (backbone_forget_main.py), but
  fitted to convergence; there the old head takes some steps.

  Args:
    found: Predictions on the training images ("forget", "retain") and the test
      images ("forget_test", "retain_test"): "features" and "label".

  Returns:
    Accuracy on the test images, "forget" and "retain".
  """
  parts = [found[role] for role in ("forget", "retain")]
  probe = fit(*(np.concatenate([p[k] for p in parts]) for k in _FITTED))
  return {
    role: _accuracy(probe, found[f"{role}_test"])
    for role in ("forget", "retain")
  }


def fresh(found: Mapping[str, Found]) -> dict[str, float] | None:
  """Fits a classifier of the forgotten classes alone on frozen features.

  Args:
    found: As in `head`.

  Returns:
    "forget": accuracy on their test images; None for a single class.
  """
  if len(np.unique(found["forget"]["label"])) < 2:
    return None
  probe = fit(*(found["forget"][k] for k in _FITTED))
  return {"forget": _accuracy(probe, found["forget_test"])}


_FITTED = ("features", "label")


def _accuracy(probe: Any, found: Found) -> float:
  return float(probe.score(found["features"], found["label"]))


def left(before: float, after: float, floor: float) -> float | None:
  """Returns how much of the accuracy above the floor is left: 1 all, 0 none.

  (after - floor) / (before - floor); None if the first model's accuracy is
  hardly above the floor.

  Args:
    before: Accuracy of the first model's probe.
    after: Accuracy of the audited model's probe.
    floor: Accuracy of the probe of a model that never saw the classes, or that
      of chance.
  """
  if before - floor < _LEAST:
    return None
  return (after - floor) / (before - floor)


def linear_probe(
  models: Mapping[str, Mapping[str, Found]],
) -> dict[str, Any]:
  """Returns the accuracy of each model's probes, and how much is left.

  Args:
    models: "before", "after", perhaps "retrained" -> predictions as in `head`.

  Returns:
    "head" and "fresh", each {model: {role: accuracy}, "floor": the retrained
    model's accuracy or, without one, that of chance, "left": see `left`}.
    "fresh" is None for a single class.
  """
  first = models["before"]
  gone = len(np.unique(first["forget"]["label"]))
  classes = gone + len(np.unique(first["retain"]["label"]))
  result: dict[str, Any] = {}
  for name, probe, guess in (
    ("head", head, 1 / classes),
    ("fresh", fresh, 1 / gone),
  ):
    by_model = {model: probe(found) for model, found in models.items()}
    result[name] = None
    if by_model["before"]:
      known = {m: scores["forget"] for m, scores in by_model.items() if scores}
      floor = known.get("retrained", guess)
      rest = left(known["before"], known["after"], floor)
      result[name] = {**by_model, "floor": floor, "left": rest}
  return result
