"""The group lasso: a penalty on the sum of the norms of lasso groups.

A lasso group is a set of parameters that become zero together (Yuan and Lin,
2006). It has nothing to do with the optimizer's parameter groups.
"""

import functools
import re
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from libml import trees

# Name of a parameter -> name of its lasso group, None if it has none.
LassoGroups = Callable[[str], str | None]

# Name in a config -> pattern over the names of adapters (GS-LoRA's groupings),
# in which BLOCK stands for the branches of the model's blocks.
GROUPINGS = {
  "block": r"(BLOCK)/.*lora_[ab]",
  "block_b": r"(BLOCK)/.*/(lora_b)",
  "lora": r"(.*)/lora_[ab]",
  "matrix": r"(.*/lora_[ab])",
}


def of_adapters(grouping: str, blocks: Iterable[str]) -> LassoGroups:
  """Returns lasso groups of a model's adapters.

  Args:
    grouping: Key of GROUPINGS.
    blocks: Branches of the model's blocks, such as "encoder/block_0".
  """
  return by_pattern(GROUPINGS[grouping].replace("BLOCK", _any_of(blocks)))


def by_branch(branches: Iterable[str]) -> LassoGroups:
  """Returns one lasso group for each branch: all parameters in it."""
  return by_pattern(f"({_any_of(branches)})/.*")


def _any_of(branches: Iterable[str]) -> str:
  # Without branches, match no name.
  return "|".join(map(re.escape, branches)) or r"(?!)"


@functools.cache
def by_pattern(pattern: str) -> LassoGroups:
  """Returns lasso groups from a regular expression over whole names.

  The captured parts of a parameter's name, joined by "/", name its lasso group.
  A parameter whose name does not match is in no lasso group.

  Raises:
    ValueError: The pattern is not a regular expression, or captures nothing.
  """
  try:
    compiled = re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f"The pattern of lasso groups {pattern!r} is no regular expression: "
      f"{error}. Correct it."
    ) from error
  if not compiled.groups:
    raise ValueError(
      f"The pattern of lasso groups {pattern!r} captures nothing, so the "
      "groups have no names; put the part that names the group in parentheses, "
      "as in '(.*)/lora_[ab]'."
    )

  def group(name: str) -> str | None:
    match = compiled.fullmatch(name)
    return "/".join(c for c in match.groups() if c) if match else None

  return group


def members(tree: Any, groups: LassoGroups) -> dict[str, list[str]]:
  """Returns {lasso group: names of its leaves in the tree's order}."""
  found: dict[str, list[str]] = {}
  for name in trees.flatten(tree):
    group = groups(name)
    if group is not None:
      found.setdefault(group, []).append(name)
  return found


def norms(tree: Any, groups: LassoGroups) -> dict[str, jax.Array]:
  """Returns the Euclidean norm over all leaves of each lasso group, float32[].

  The gradient of the norm of a group at zero is 0, a subgradient, and not NaN.
  """
  leaves = trees.flatten(tree)

  def norm(names):
    total = sum(
      jnp.sum(jnp.square(trees.widened(leaves[name])), initial=0.0)
      for name in names
    )
    positive = total > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, total, 1.0)), 0.0)

  return {group: norm(names) for group, names in members(tree, groups).items()}


def penalty(tree: Any, groups: LassoGroups) -> jax.Array:
  """Returns the sum of the lasso groups' norms, float32[]; 0 without groups."""
  return sum(norms(tree, groups).values(), jnp.zeros((), jnp.float32))


def zeros(tree: Any, groups: LassoGroups) -> dict[str, jax.Array]:
  """Returns for each lasso group whether it is exactly zero, bool[]."""
  leaves = trees.flatten(tree)
  return {
    group: jnp.stack([jnp.all(leaves[name] == 0) for name in names]).all()
    for group, names in members(tree, groups).items()
  }
