"""Adds columns for new classes to a pretrained head.

Xing et al., "Knowledge Swapping via Learning and Unlearning", ICML 2025: old
columns are kept and new ones drawn. The head stays frozen, so that only the
features learn the new classes.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from models import layouts


def expand(
  found: layouts.Flat,
  expected: Mapping[str, Any],
  count: int,
  *,
  head: str,
  seed: int,
  source: pathlib.Path,
) -> layouts.Flat:
  """Returns the weights with new columns at the end of the head.

  New columns are uniform in +-sqrt(6 / (D + count)), the Glorot-uniform
  initialization of a layer [D, count]; their biases are 0.

  Args:
    found: The file's leaves by name, with the head's kernel [D, K].
    expected: The model's leaves by name, its head's kernel [D, K + count], as
      anything with a shape.
    count: Number of new columns.
    head: Branch of the head.
    seed: Seed of the new columns.
    source: The file, for errors.

  Raises:
    ValueError: The file has no head, or its head another number of classes.
  """
  kernel = f"{head}/kernel"
  if kernel not in found:
    raise ValueError(
      f"{source} has no head to which {count} new classes could be added: use "
      "a file that contains a classifier's head."
    )
  width, known = found[kernel].shape
  wanted = expected[kernel].shape[-1] - count
  if known != wanted:
    raise ValueError(
      f"The head of {source} has {known} classes, but by the data it should "
      f"know {wanted}, besides {count} new ones; set dataset.known={known} if "
      f"the data are folders, or use weights with {wanted} classes."
    )
  bound = math.sqrt(6 / (width + count))
  rng = np.random.Generator(np.random.Philox(seed))
  drawn = rng.uniform(-bound, bound, (width, count))
  return {**found, **joined(found, drawn.astype(np.float32), head)}


def joined(found: layouts.Flat, columns: np.ndarray, head: str) -> layouts.Flat:
  """Returns the leaves of a head with new columns [D, count] at its end."""
  kernel, bias = f"{head}/kernel", f"{head}/bias"
  leaves = {kernel: np.concatenate([found[kernel], columns], axis=-1)}
  if bias in found:
    zeros = np.zeros(columns.shape[-1:], found[bias].dtype)
    leaves[bias] = np.concatenate([found[bias], zeros])
  return leaves
