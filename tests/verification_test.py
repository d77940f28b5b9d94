"""Face verification, against counts by hand and a plain search."""

import numpy as np
import pytest

from libml.datasets import pairs
from libml.problems import verification

# LFW's form: 2 folds, "1 pair a kind and fold".
LFW = "2\t1\nAnn\t1\t2\nAnn\t1\tBob\t1\nBob\t1\t2\nAnn\t2\tBob\t2\n"


@pytest.fixture
def images(tmp_path):
  for name in ("Ann", "Bob"):
    (tmp_path / name).mkdir()
    for number in (1, 2):
      (tmp_path / name / f"{name}_000{number}.jpg").write_bytes(b"")
  return tmp_path


def write(folder, text):
  path = folder / "pairs.txt"
  path.write_text(text)
  return path


def test_both_forms_name_the_same_pairs(images):
  lfw = pairs.read(write(images, LFW), images)
  assert lfw.folds == 2
  a, b = "Ann/Ann_000", "Bob/Bob_000"
  plain = pairs.read(
    write(
      images,
      f"# ours\n{a}1.jpg {a}2.jpg 1\n{a}1.jpg {b}1.jpg 0\n\n"
      f"{b}1.jpg {b}2.jpg 1\n{a}2.jpg {b}2.jpg 0\n",
    ),
    images,
    folds=2,
  )
  assert lfw.images == plain.images and len(plain.images) == 4
  for field in ("first", "second", "same"):
    np.testing.assert_array_equal(getattr(lfw, field), getattr(plain, field))
  assert plain.same.tolist() == [True, False, True, False]


def test_paths_with_spaces_are_parted_by_tabs(tmp_path):
  for name in ("a b.jpg", "c.jpg"):
    (tmp_path / name).write_bytes(b"")
  path = write(tmp_path, "a b.jpg\tc.jpg\t1\nc.jpg\ta b.jpg\t0\n")
  found = pairs.read(path, tmp_path, folds=2)
  assert [p.name for p in found.images] == ["a b.jpg", "c.jpg"]


@pytest.mark.parametrize(
  "text, error, message",
  [
    ("a.jpg b.jpg 1\na.jpg 0\n", ValueError, "line 2: 'a.jpg 0' must be"),
    ("a.jpg b.jpg 2\n", ValueError, "line 1: .*one person"),
    ("a b.jpg c.jpg 1\n", ValueError, "separate paths that contain spaces"),
    (LFW + "Ann\t1\n", ValueError, "line 6: 'Ann 1' must be 'name n m'"),
    ("ten\t1\n", ValueError, "numbers of folds"),
    ("", ValueError, "lists 0 pairs for 10 folds"),
    ("a.jpg b.jpg 1\n", ValueError, "lists 1 pairs for 10 folds"),
    ("a.jpg b.jpg 1\n" * 10, FileNotFoundError, "2 images .* first a.jpg"),
    (
      "Ann/Ann_0001.jpg Ann/Ann_0002.jpg 1\n" * 10,
      ValueError,
      "all show one person",
    ),
  ],
)
def test_bad_lists(images, text, error, message):
  with pytest.raises(error, match=message):
    pairs.read(write(images, text), images)


def test_no_list(tmp_path):
  with pytest.raises(FileNotFoundError, match="No list of pairs"):
    pairs.read(tmp_path / "pairs.txt", tmp_path)


def test_similarity_is_a_cosine_of_any_length():
  embeddings = np.array([[2.0, 0], [0, 3], [-5, 0], [1, 1], [0, 0]])
  found = verification.similarities(
    embeddings, np.array([0, 0, 0, 0, 0]), np.array([0, 1, 2, 3, 4])
  )
  np.testing.assert_allclose(found, [1, 0, -1, np.sqrt(0.5), 0], atol=1e-15)


def searched(similarity, same):
  """The best accuracy of any threshold, by trying all."""
  values = np.unique(similarity)
  tries = [-2.0, *((values[1:] + values[:-1]) / 2), 2.0]
  return max(np.mean((similarity > t) == same) for t in tries)


@pytest.mark.parametrize("seed", range(20))
def test_threshold_is_the_best_of_all(seed):
  rng = np.random.default_rng(seed)
  same = rng.random(37) < 0.5
  similarity = np.round(rng.normal(same * 0.5, 0.5), 1)  # with ties
  threshold = verification.best_threshold(similarity, same)
  reached = np.mean((similarity > threshold) == same)
  assert reached == searched(similarity, same)


def test_a_fold_has_no_say_in_its_own_threshold():
  # Two folds at other levels: each is judged by the other's threshold.
  similarity = np.array([0.1, 0.3, 0.6, 0.8])
  same = np.array([False, True, False, True])
  found = verification.fold_accuracies(similarity, same, folds=2)
  np.testing.assert_array_equal(found, [0.5, 0.5])
  for folds in (1, 5):
    with pytest.raises(ValueError, match=f"folds={folds} of 4 pairs"):
      verification.fold_accuracies(similarity, same, folds=folds)


def test_rates_by_hand():
  similarity = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
  same = np.array([True, True, False, True, False, False])
  rate = verification.true_accept_rate
  assert rate(similarity, same, 0.0) == pytest.approx(2 / 3)
  assert rate(similarity, same, 0.34) == 1.0
  found = verification.pair_metrics(similarity, same, folds=2)
  assert found["auc"] == pytest.approx(8 / 9)
  assert found["count"] == 6
  assert found["tar_at_far_0.001"] == pytest.approx(2 / 3)


def test_problem_measures_images_in_any_order_and_padding():
  rng = np.random.default_rng(0)
  people = np.arange(20) // 2
  embeddings = rng.normal(size=(10, 8))[people]
  embeddings += 0.01 * rng.normal(size=embeddings.shape)
  first = np.arange(20, dtype=np.int32)
  second = np.where(first % 2, (first + 7) % 20, first + 1).astype(np.int32)
  listed = pairs.Pairs(
    images=tuple(map(str, range(20))),
    first=first,
    second=second,
    same=people[first] == people[second],
  )
  problem = verification.Verification(listed)
  order = np.append(rng.permutation(20), [3] * 4)  # the last 4 are padding
  mask = np.arange(24) < 20
  embeddings[3] *= 5  # of any length
  measures = [
    problem.measure(
      {"features": np.where(mask[i, None], embeddings[order[i]], 1e9)},
      {"label": order[i], "mask": mask[i]},
    )
    for i in (np.arange(0, 8), np.arange(8, 16), np.arange(16, 24))
  ]
  found = problem.summarize(measures)
  similarity = verification.similarities(embeddings, first, second)
  expected = verification.pair_metrics(similarity, listed.same, folds=10)
  curve = found.pop("roc")
  assert curve["false_accept_rate"][:11:10] == [1e-4, 1e-3]
  assert set(curve["true_accept_rate"]) == {1.0} and found["count"] == 20
  assert found == pytest.approx(expected, abs=1e-6)
  assert (found["auc"], found["tar_at_far_0.001"]) == (1.0, 1.0)
  with pytest.raises(ValueError, match="8 images of the pairs were not"):
    problem.summarize(measures[1:])
  with pytest.raises(ValueError, match="no loss"):
    problem.loss({}, {})
  with pytest.raises(ValueError, match=r"features, .* only \['logits'\]"):
    problem.measure({"logits": embeddings}, {})
