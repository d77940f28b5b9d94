"""Membership inference: were these images trained on?"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from libml.audit import probing

# Smaller probabilities count as this one, as in Song and Mittal's code.
_SMALLEST = 1e-30
_FOLDS = 5
# Columns of `scores`: name, and the sign with which members score higher.
_SCORES = tuple(
  enumerate({"confidence": 1, "entropy": -1, "modified_entropy": -1}.items())
)
# 97.5 % quantile of the normal distribution, for an interval of 95 %.
_QUANTILE = 1.959963984540054


def scores(probabilities: np.ndarray, label: np.ndarray) -> np.ndarray:
  """Returns three scores of each prediction for an attacker, [N, 3].

  With p the prediction and y the true class: log p_y, the entropy of p, and the
  modified entropy of Song and Mittal, "Systematic Evaluation of Privacy Risks
  of Machine Learning Models", USENIX Security 2021,

    -(1 - p_y) log p_y - sum over j != y of p_j log(1 - p_j)

  Args:
    probabilities: [N, C].
    label: int [N].
  """
  p = np.asarray(probabilities, np.float64)
  rows = np.arange(len(p))
  log_p = np.log(np.maximum(p, _SMALLEST))
  log_rest = np.log(np.maximum(1 - p, _SMALLEST))
  entropy = -np.sum(p * log_p, axis=1)
  others = p * log_rest
  others[rows, label] = 0
  true, log_true = p[rows, label], log_p[rows, label]
  modified = -(1 - true) * log_true - np.sum(others, axis=1)
  return np.stack([log_true, entropy, modified], axis=1)


def auc(
  score: np.ndarray, member: np.ndarray, fold: np.ndarray | None = None
) -> dict[str, float]:
  """Returns the area under the ROC curve, and its 95 % interval.

  Scores of different folds come from different fits, so they are compared only
  within a fold, and the area is the mean over folds. In one list of all folds
  the area would be below 0.5 if members look like others. With f the
  share of its fold's others that a member exceeds (ties count half), and g the
  share of members that exceed one of the others, the variance is var(f) / M +
  var(g) / N about each fold's own area (DeLong et al., Biometrics 1988; LeDell
  et al., Electronic Journal of Statistics 2015). The fits of K folds share
  images, so the variance is multiplied by 1 + K / (K - 1) (Nadeau and Bengio,
  Machine Learning 2003). The interval is clipped to [0, 1].

  Args:
    score: [N], larger for what looks like a member.
    member: bool [N].
    fold: int [N], the fold of each image; a fold needs members and others.
      None: one fold.

  Returns:
    "auc", and the interval's ends "low" and "high".
  """
  from scipy import stats  # comes with scikit-learn

  fold = np.zeros(len(score), int) if fold is None else fold
  areas, spread = [], {True: [], False: []}
  for number in np.unique(fold):
    there = fold == number
    ours, theirs = score[there & member], score[there & ~member]
    ranks = stats.rankdata(np.concatenate([ours, theirs]))
    m, n = len(ours), len(theirs)
    f = (ranks[:m] - stats.rankdata(ours)) / n
    g = 1 - (ranks[m:] - stats.rankdata(theirs)) / m
    areas.append(f.mean())
    spread[True].append((f - areas[-1]) ** 2)
    spread[False].append((g - areas[-1]) ** 2)
  area, count = float(np.mean(areas)), len(areas)
  squares = [np.concatenate(parts) for parts in spread.values()]
  variance = sum(x.sum() / max(len(x) - count, 1) / len(x) for x in squares)
  if count > 1:
    variance *= 1 + count / (count - 1)
  width = _QUANTILE * float(np.sqrt(variance))
  return {
    "auc": area,
    "low": max(0.0, area - width),
    "high": min(1.0, area + width),
  }


def attack(
  members: np.ndarray, others: np.ndarray, *, seed: int
) -> dict[str, Any] | None:
  """Returns how well members can be told from others.

  Cross-validation: five times a logistic regression on the three scores is
  fitted on four fifths of the images and applied to the other fifth. Each
  score's own AUC needs no fit; it expects the model to be surer of members.

  Args:
    members: From `scores`, [M, 3].
    others: From `scores`, [N, 3].
    seed: Draws the folds.

  Returns:
    "auc" with "low" and "high", as `auc` has them; "confidence", "entropy" and
    "modified_entropy", AUCs; "members" and "others", the numbers of images.
    None with fewer than two members or two others.
  """
  from sklearn import model_selection

  fewest = min(len(members), len(others))
  if fewest < 2:
    return None
  x = np.concatenate([members, others])
  y = np.repeat([True, False], [len(members), len(others)])
  folds = model_selection.StratifiedKFold(
    min(_FOLDS, fewest), shuffle=True, random_state=seed
  )
  asked, fold = np.zeros(len(y)), np.zeros(len(y), int)
  for number, (fitted, held_out) in enumerate(folds.split(x, y)):
    # On three columns this solver needs a few steps, lbfgs dozens.
    model = probing.fit(x[fitted], y[fitted], solver="newton-cholesky")
    asked[held_out] = model.decision_function(x[held_out])
    fold[held_out] = number
  return {
    **auc(asked, y, fold),
    **{name: auc(sign * x[:, i], y)["auc"] for i, (name, sign) in _SCORES},
    "members": len(members),
    "others": len(others),
  }


def membership(
  found: Mapping[str, np.ndarray], *, seed: int
) -> dict[str, dict[str, Any] | None]:
  """Returns the attacks on one model.

  Args:
    found: Scores of the training images ("forget", "retain") and of the test
      images ("forget_test", "retain_test").
    seed: Draws the folds.

  Returns:
    "test": forgotten training images against test images of the same classes;
    "held_out": against test images of retained classes; "kept": the control,
    training against test images of retained classes, which shows what an
    attacker finds where nothing was to be forgotten.
  """
  sides = {
    "test": ("forget", "forget_test"),
    "held_out": ("forget", "retain_test"),
    "kept": ("retain", "retain_test"),
  }
  return {
    name: attack(found[members], found[others], seed=seed)
    for name, (members, others) in sides.items()
  }
