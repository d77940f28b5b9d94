"""Parameter groups: which parameters an optimizer trains, and how.

Each group has a name and a pattern over the names of parameters.
"""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any

import jax

from libml import trees

# Number of parameters that an error names.
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Groups:
  """The parameter groups of an optimizer.

  Attributes:
    patterns: Ordered pairs (name, regular expression over whole leaf names);
      the first match wins.
    frozen: Names of the parameter groups that are not trained.
  """

  patterns: tuple[tuple[str, str], ...]
  frozen: frozenset[str]

  @property
  def trained(self) -> tuple[str, ...]:
    """Names of the parameter groups that are trained."""
    return tuple(n for n, _ in self.patterns if n not in self.frozen)

  def labels(self, params: Any) -> Any:
    """Returns the tree with the name of each leaf's parameter group.

    Raises:
      ValueError: A parameter matches no group.
    """

    def label(name, leaf):
      del leaf
      for group, pattern in self.patterns:
        if re.fullmatch(pattern, name):
          return group
      raise ValueError(
        f"Parameter {name!r} matches none of the parameter groups "
        f"{self.patterns}; add a last one with the pattern '.*' to "
        "optimizer.groups."
      )

    return trees.map_named(label, params)

  def trainable(self, params: Any) -> Any:
    """Returns the tree of booleans that say whether a leaf is trained."""
    return jax.tree.map(lambda g: g not in self.frozen, self.labels(params))

  def sizes(self, params: Any) -> dict[str, int]:
    """Returns the numbers of scalar weights, "total" and "trainable"."""
    sizes = jax.tree.map(lambda leaf: leaf.size, params)
    trained = jax.tree.map(lambda s, on: s * on, sizes, self.trainable(params))
    total, trainable = (sum(jax.tree.leaves(t)) for t in (sizes, trained))
    return {"total": total, "trainable": trainable}

  def check(self, params: Any) -> None:
    """Checks that every trained group has a parameter.

    Raises:
      ValueError: A trained group has no parameter.
    """
    labels = trees.flatten(self.labels(params))
    for group, pattern in self.patterns:
      if group in self.frozen or group in labels.values():
        continue
      kind, names = _alike(pattern, list(labels))
      shown = ", ".join(f"{n!r} (in group {labels[n]!r})" for n in names)
      raise ValueError(
        f"The optimizer trains the group {group!r}, but its pattern "
        f"{pattern!r} gets none of the {len(labels)} parameters; {kind} "
        f"{shown}. Correct the pattern or the order of optimizer.groups, or "
        f"set optimizer.{group}=None."
      )


def _alike(pattern: str, names: Sequence[str]) -> tuple[str, Sequence[str]]:
  """Returns words for an error, and names that a pattern may be meant for."""
  matched = [name for name in names if re.fullmatch(pattern, name)]
  if matched:
    return "an earlier group takes", matched[:_SHOWN]
  parts = sorted({part for name in names for part in name.split("/")})
  words = re.findall(r"[^\W\d]\w{2,}", pattern)
  near = {p for word in words for p in difflib.get_close_matches(word, parts)}
  alike = [name for name in names if near & set(name.split("/"))]
  if alike:
    return "similar names are", alike[:_SHOWN]
  return "they are called", names[:_SHOWN]
