"""Attacks on members, and distances, against figures worked out by hand."""

import numpy as np
import pytest
from scipy import special
from sklearn import metrics

from libml.audit import distances
from libml.audit import membership
from libml.audit import predictions
from libml.audit import probing


def test_scores_are_those_of_the_paper():
  p, label = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]]), np.array([1, 1])
  found = membership.scores(p, label)
  log = np.log
  entropy = -(0.7 * log(0.7) + 0.2 * log(0.2) + 0.1 * log(0.1))
  modified = -0.8 * log(0.2) - 0.7 * log(0.3) - 0.1 * log(0.9)
  np.testing.assert_allclose(found[0], [log(0.2), entropy, modified])
  # Certain and right: nothing is infinite, all are 0.
  np.testing.assert_allclose(found[1], 0, atol=1e-12)
  wrong = membership.scores(p[1:], np.array([0]))[0]
  assert np.isfinite(wrong).all() and wrong[0] < -60 and wrong[2] > 60


def test_the_area_is_that_of_scikit_learn_ties_included():
  rng = np.random.default_rng(0)
  score = rng.integers(0, 6, 80).astype(float)
  member = rng.random(80) < 0.4
  found = membership.auc(score, member)
  assert found["auc"] == pytest.approx(metrics.roc_auc_score(member, score))
  assert 0 <= found["low"] < found["auc"] < found["high"] <= 1


def test_the_interval_is_delongs():
  # 3 exceeds both others, 1 one of two, and 2 one and half of its equal.
  score = np.array([3.0, 1.0, 2.0, 0.0, 2.0])
  member = np.array([True, True, True, False, False])
  found = membership.auc(score, member)
  f, g = np.array([1, 0.5, 0.75]), np.array([1, 0.5])
  assert found["auc"] == pytest.approx(f.mean()) == g.mean()
  width = 1.959964 * np.sqrt(f.var(ddof=1) / 3 + g.var(ddof=1) / 2)
  assert found["low"] == pytest.approx(max(0, f.mean() - width))
  assert found["high"] == min(1, f.mean() + width)


def test_folds_are_not_compared_with_each_other():
  # Inside each fold members are ahead; the second fit's zero is elsewhere.
  score = np.array([2.0, 1.0, 12.0, 11.0])
  member = np.array([True, False, True, False])
  assert membership.auc(score, member)["auc"] == 0.75
  fold = np.array([0, 0, 1, 1])
  assert membership.auc(score, member, fold)["auc"] == 1


def draws(shift, count, seed):
  """Returns scores of members, moved by `shift`, and of others."""
  rng = np.random.default_rng(seed)
  members, others = rng.normal(size=(2, count, 3))
  members[:, 0] += shift
  return members, others


def test_the_attack_finds_members_and_nothing_else():
  found = membership.attack(*draws(2.0, 60, 0), seed=0)
  assert found["low"] > 0.7 and found["confidence"] > 0.85
  assert found["members"] == found["others"] == 60
  # Fitted to what it is asked, an attack would find something in noise.
  nothing = [
    membership.attack(*draws(0.0, 25, seed), seed=seed) for seed in range(30)
  ]
  assert abs(np.mean([n["auc"] for n in nothing]) - 0.5) < 0.05
  assert np.mean([n["low"] <= 0.5 <= n["high"] for n in nothing]) >= 0.9


def test_the_attack_is_the_same_for_the_same_seed():
  members, others = draws(0.5, 20, 1)
  again = membership.attack(members, others, seed=3)
  assert membership.attack(members, others, seed=3) == again
  assert membership.attack(members, others, seed=4) != again
  assert membership.attack(members[:1], others, seed=3) is None


def test_each_attack_takes_its_images():
  roles = ("forget", "forget_test", "retain", "retain_test")
  found = dict(zip(roles, np.split(draws(0, 20, 2)[0], 4), strict=True))
  found["forget_test"] = found["forget_test"] - 9
  attacks = membership.membership(found, seed=0)
  assert attacks["test"]["confidence"] == 1
  assert attacks["held_out"]["confidence"] < 1
  assert set(attacks) == {"test", "held_out", "kept"}


def test_what_is_left_lies_between_floor_and_ceiling():
  assert probing.left(0.9, 0.9, 0.5) == 1
  assert probing.left(0.9, 0.5, 0.5) == 0
  assert probing.left(0.9, 0.7, 0.5) == pytest.approx(0.5)
  assert probing.left(0.54, 0.53, 0.5) is None


def test_predictions_name_known_classes_only():
  logits = np.array([[0.0, 1.0, 9.0], [2.0, 0.0, 9.0]])
  p = predictions.probabilities(logits, (0, 1))
  np.testing.assert_allclose(p[:, :2], special.softmax(logits[:, :2], axis=1))
  assert not p[:, 2].any()
  found = {"logits": logits, "label": np.array([1, 1])}
  assert predictions.accuracy(found, (0, 1)) == 0.5
  assert predictions.accuracy(found, (0, 1, 2)) == 0


def said(named, label):
  """Returns predictions that name some classes of 3, surely."""
  return {"logits": 50 * np.eye(3)[named], "label": np.array(label)}


def test_distances_to_a_retrained_model():
  right = said([0, 1], [0, 1])
  model = {
    "forget": said([2, 2], [2, 2]),
    "forget_test": said([2, 0], [2, 2]),
    "retain": right,
    "retain_test": right,
  }
  other = {**model, "forget": said([0, 1], [2, 2]), "retain": said([0], [1])}
  other["forget_test"] = said([0, 0], [2, 2])
  found = distances.to_retrained(model, other, (0, 1, 2))
  assert found["gaps"] == {"forget": 1, "retain": 1, "test": 0.25}
  assert found["average_gap"] == pytest.approx(0.75)
  assert found["tug_of_war"] == 0
  # One of two predictions is wrong for sure, and counts as 1e-12.
  assert found["kl"]["forget"] == pytest.approx(np.log(1e12) / 2)
  assert found["kl"]["retain"] == pytest.approx(0, abs=1e-9)
  same = distances.to_retrained(model, model, (0, 1, 2))
  assert same["tug_of_war"] == 1 and same["average_gap"] == 0


def test_drift_of_turned_and_of_longer_features():
  x = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
  before = {"features": x, "label": np.array([0, 0, 1])}
  longer = distances.drift(before, {**before, "features": 2 * x})
  assert longer == {"cosine": pytest.approx(1), "mean_change": 1}
  turned = distances.drift(before, {**before, "features": x[:, ::-1]})
  assert turned["cosine"] == 0
  assert turned["mean_change"] == pytest.approx(np.sqrt(2))
