"""Groups of parameters and the sum of their norms: the group lasso."""

import functools
import re
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from libml import trees

# Name of a parameter -> name of its group, None where it has none.
LassoGroups = Callable[[str], str | None]

# Name in a config -> pattern over adapters (GS-LoRA's groupings). BLOCK stands
# for the branches of a model's blocks.
GROUPINGS = {
  "block": r"(BLOCK)/.*lora_[ab]",
  "block_b": r"(BLOCK)/.*/(lora_b)",
  "lora": r"(.*)/lora_[ab]",
  "matrix": r"(.*/lora_[ab])",
}


def of_adapters(grouping: str, blocks: Iterable[str]) -> LassoGroups:
  """Returns groups of a model's adapters.

  Args:
    grouping: Row of GROUPINGS.
    blocks: Branches of the model's blocks.
  """
  return by_pattern(GROUPINGS[grouping].replace("BLOCK", _any_of(blocks)))


def by_branch(branches: Iterable[str]) -> LassoGroups:
  """Returns groups that are all parameters below each of some branches."""
  return by_pattern(f"({_any_of(branches)})/.*")


def _any_of(branches: Iterable[str]) -> str:
  # Without any, no name matches.
  return "|".join(map(re.escape, branches)) or r"(?!)"


@functools.cache
def by_pattern(pattern: str) -> LassoGroups:
  """Returns groups that a regular expression over whole names captures.

  What the expression captures, joined by "/", names the group; a parameter
  whose name it does not match is in none.

  Raises:
    ValueError: A pattern that is no regular expression, or captures nothing.
  """
  try:
    compiled = re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f"The pattern of groups {pattern!r} is no regular expression: {error}."
    ) from error
  if not compiled.groups:
    raise ValueError(
      f"The pattern of groups {pattern!r} captures nothing, so no group has a "
      "name; put what names the group in parentheses, as in "
      "'(.*)/lora_[ab]'."
    )

  def group(name: str) -> str | None:
    match = compiled.fullmatch(name)
    return "/".join(c for c in match.groups() if c) if match else None

  return group


def members(tree: Any, groups: LassoGroups) -> dict[str, list[str]]:
  """Returns the names of each group's leaves, in the tree's order."""
  found: dict[str, list[str]] = {}
  for name in trees.flatten(tree):
    group = groups(name)
    if group is not None:
      found.setdefault(group, []).append(name)
  return found


def norms(tree: Any, groups: LassoGroups) -> dict[str, jax.Array]:
  """Returns the Euclidean norm over all leaves of each group, float32[].

  Its gradient at a group that is all zero is zero, a subgradient, and not NaN.
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
  """Returns the sum of the groups' norms, float32[]; of no group, 0."""
  return sum(norms(tree, groups).values(), jnp.zeros((), jnp.float32))


def zeros(tree: Any, groups: LassoGroups) -> dict[str, jax.Array]:
  """Returns for each group whether all of it is exactly zero, bool[]."""
  leaves = trees.flatten(tree)
  return {
    group: jnp.stack([jnp.all(leaves[name] == 0) for name in names]).all()
    for group, names in members(tree, groups).items()
  }
