"""A pretrained head with columns for classes that it does not know yet.

Xing et al., "Knowledge Swapping via Learning and Unlearning", ICML 2025: old
columns as they are, new ones drawn, so that a frozen head learns them through
the features alone.
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
  """Returns weights whose head has further columns at its end.

  New columns are uniform in +-sqrt(6 / (D + count)), Glorot and Bengio's for a
  layer of their own size; their biases are 0.

  Args:
    found: The file's leaves by name, the head's kernel [D, K] among them.
    expected: The model's, [D, K + count], as anything with a shape.
    count: New columns.
    head: Branch of the head.
    seed: Draws them.
    source: The file, for errors.

  Raises:
    ValueError: A file without a head, or of another number of classes.
  """
  kernel = f"{head}/kernel"
  if kernel not in found:
    raise ValueError(
      f"{source} has no head, and {count} classes are to be added to one: take "
      "a file of a whole classifier."
    )
  width, known = found[kernel].shape
  wanted = expected[kernel].shape[-1] - count
  if known != wanted:
    raise ValueError(
      f"The head of {source} has {known} classes, and the data say that it "
      f"knows {wanted}, to which {count} new ones come; set dataset.known="
      f"{known} where data are folders, or take weights of these {wanted} "
      "classes."
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
