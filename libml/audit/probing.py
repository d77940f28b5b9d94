"""Linear probes: what is left in the features when the head is made anew."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Found = Mapping[str, np.ndarray]

# Below this distance of floor and ceiling a probe cannot tell what is left.
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
  """Makes the head anew over all classes, backbone frozen.

  The recovery test of the GS-LoRA code (backbone_forget_main.py), solved to the
  end in place of some steps from the old head.

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
  """Tells the forgotten classes apart by a classifier of their own.

  Args:
    found: As in `head`.

  Returns:
    Accuracy on their test images, "forget"; None where there is one class.
  """
  if len(np.unique(found["forget"]["label"])) < 2:
    return None
  probe = fit(*(found["forget"][k] for k in _FITTED))
  return {"forget": _accuracy(probe, found["forget_test"])}


_FITTED = ("features", "label")


def _accuracy(probe: Any, found: Found) -> float:
  return float(probe.score(found["features"], found["label"]))


def left(before: float, after: float, floor: float) -> float | None:
  """Returns how much of what can be forgotten is still there: 1 all, 0 none.

  (after - floor) / (before - floor). None where floor and ceiling are too near
  to tell.

  Args:
    before: Accuracy of the first model's probe.
    after: That of the model in question.
    floor: That of a model that never saw the classes, or of a guess.
  """
  if before - floor < _LEAST:
    return None
  return (after - floor) / (before - floor)


def linear_probe(
  models: Mapping[str, Mapping[str, Found]],
) -> dict[str, Any]:
  """Returns what probes find in each model, and what is left of it.

  Args:
    models: "before", "after", perhaps "retrained" -> predictions as in `head`.

  Returns:
    "head" and "fresh", each {model: {role: accuracy}, "left": see `left`}; the
    floor is the retrained model's accuracy, or a guess's where there is none.
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
