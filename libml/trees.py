"""Trees with named leaves: keys joined by "/", such as "encoder/norm/bias"."""

import posixpath
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def name(path: tuple[Any, ...]) -> str:
  """Returns the name of a leaf from JAX's key path."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def map_named(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
  """Maps fn(name, leaf, *rest_leaves) over a tree, like jax.tree.map."""
  return jax.tree_util.tree_map_with_path(
    lambda path, *leaves: fn(name(path), *leaves), tree, *rest
  )


def flatten(tree: Any) -> dict[str, Any]:
  """Returns {name: leaf}, in the order of jax.tree.leaves."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {name(path): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Returns nested dictionaries from {name: leaf}.

  It is the inverse of `flatten` for dictionaries whose keys have no "/".
  """
  tree: dict[str, Any] = {}
  for key, leaf in leaves.items():
    *parents, last = key.split("/")
    place = tree
    for part in parents:
      place = place.setdefault(part, {})
    place[last] = leaf
  return tree


def without(tree: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
  """Returns a dictionary without the entries of these names."""
  return {name: part for name, part in tree.items() if name not in names}


def update(tree: Any, leaves: Mapping[str, Any]) -> Any:
  """Returns the tree with some leaves replaced, given as {name: leaf}."""
  return map_named(lambda key, leaf: leaves.get(key, leaf), tree)


def widened(tree: Any) -> Any:
  """Returns the tree with every leaf promoted to at least float32."""
  return jax.tree.map(
    lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree
  )


def holder(name: str, branches: Iterable[str]) -> str | None:
  """Returns the first branch that is `name` or contains it; None: none does.

  Args:
    name: Name of a leaf or branch.
    branches: Names of branches, such as "encoder/block_0".
  """
  for branch in branches:
    if name == branch or name.startswith(f"{branch}/"):
      return branch
  return None


def pattern(branches: Iterable[str]) -> str:
  """Returns a regular expression for some branches and all names in them."""
  return rf"(?:{'|'.join(map(re.escape, branches))})(?:/.*)?"


def root(branches: Iterable[str]) -> str:
  """Returns the deepest branch that contains all of some branches.

  The result is "" if there are no branches, or only the whole tree contains
  them all.
  """
  parents = [branch.rpartition("/")[0] for branch in branches]
  if not all(parents):
    return ""
  return posixpath.commonpath(parents) if parents else ""
