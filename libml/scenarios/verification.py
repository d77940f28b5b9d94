"""Pairs of faces, measured after a scenario's last stage."""

import dataclasses
import pathlib

import numpy as np

from libml import datasets
from libml.datasets import files
from libml.datasets import pairs as pairs_lib
from libml.problems.verification import Verification
from libml.scenarios.stage import Scenario
from libml.scenarios.stage import TestSet

# Name of the test set.
TEST_SET = "verification"


def attach(
  scenario: Scenario,
  *,
  pairs: str | pathlib.Path | None = None,
  root: str | pathlib.Path | None = None,
  folds: int = 10,
) -> Scenario:
  """Adds the test set "verification" to a scenario's last stage.

  It is also measured before the first stage, if the scenario measures anything
  there. The matrix and the summaries leave it out.

  Args:
    scenario: Whose last stage is to measure the pairs.
    pairs: List of pairs (libml/datasets/pairs.py); None: no verification.
    root: Folder of the images.
    folds: As in `pairs.read`.

  Raises:
    FileNotFoundError: No such list, or images that do not exist.
    ValueError: Only one of `pairs` and `root` is given, an image cannot be
      decoded, or `pairs.read` refuses the list.
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
  test_set = TestSet(
    datasets.Subset.of(split), classes=(), problem=Verification(found)
  )
  added = {TEST_SET: test_set}
  last = scenario.stages[-1]
  last = dataclasses.replace(last, test_sets={**last.test_sets, **added})
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
    description={**scenario.description, TEST_SET: description},
  )
