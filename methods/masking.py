"""What methods with one linear head do at the border of two tasks."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def allowed(classes: tuple[int, ...], num_classes: int) -> jax.Array:
  """Returns bool [C], true at the given class ids."""
  return jnp.asarray(np.isin(np.arange(num_classes), classes))


def check_transfer(part: str) -> None:
  """Raises ValueError for a part of the head that is none."""
  if part not in ("none", "kernel", "all"):
    raise ValueError(
      f"transfer_head={part!r} must be 'none', 'kernel' or 'all'."
    )


def transfer_head(
  params: Any, classes: Mapping[str, tuple[int, ...]], part: str
) -> Any:
  """Starts a task's columns as the mean of earlier tasks' (L2P's option).

  Column i of the new task becomes the mean over earlier tasks of their column
  i; tasks are of equal size.

  Args:
    params: With head/kernel [D, C] and head/bias [C].
    classes: "learn": the new ids; "seen": all ids in order, the new last.
    part: "none": nothing; "kernel"; "all": the bias, too.
  """
  new = np.asarray(classes["learn"])
  old = np.asarray(classes["seen"][: -len(new)]).reshape(-1, len(new))
  if part == "none" or not old.size:
    return params
  head = dict(params["head"])
  names = ("kernel",) if part == "kernel" else ("kernel", "bias")
  for name in names:
    means = head[name][..., old].mean(axis=-2)
    head[name] = head[name].at[..., new].set(means)
  return {**params, "head": head}
