"""The frame of proximal optimizers: a step, and then groups are shrunk."""

import dataclasses
import math
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from libml import registry
from libml import trees
from libml.optim import group_lasso
from libml.optim import shrinkage

# Weight of a group in the penalty, from its number of parameters.
WEIGHTS: Mapping[str, Callable[[int], float]] = {
  "one": lambda size: 1.0,
  "sqrt_size": math.sqrt,
}


class Group(NamedTuple):
  """A group of parameters, or a stack of groups.

  Attributes:
    names: Of its parameters.
    weight: In the penalty.
    stacked: Whether each index of the parameters' first axis is a group.
  """

  names: list[str]
  weight: float
  stacked: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Penalty:
  """What is shrunk, and how much.

  Attributes:
    learning_rate: Number or schedule.
    alpha: Number or schedule.
    groups: Name of a parameter to the name of its group, or to None.
    weights: Row of WEIGHTS.
    clock: Extra argument that schedules are functions of; None: the number of
      updates so far.
    stacked: Whether a parameter of this name is a stack of layers.
    gain: Further factor of the thresholds.

  Raises:
    ValueError: On construction, for a number out of range or unknown weights.
  """

  learning_rate: optax.ScalarOrSchedule
  alpha: optax.ScalarOrSchedule
  groups: group_lasso.LassoGroups
  weights: str = "one"
  clock: str | None = None
  stacked: Callable[[str], Any] | None = None
  gain: float = 1.0

  def __post_init__(self):
    """Checks numbers and the name of the weights."""
    for key in ("learning_rate", "alpha"):
      value = getattr(self, key)
      if isinstance(value, int | float) and not 0 <= value < math.inf:
        raise ValueError(
          f"{key}={value} must be at least 0 and finite; give 0 to switch it "
          "off, or a schedule."
        )
    if self.weights not in WEIGHTS:
      raise ValueError(
        f"Unknown weights {self.weights!r} of groups. "
        f"{registry.nearest(self.weights, WEIGHTS)}"
      )

  def find(self, params: Any) -> list[Group]:
    """Returns the groups of a tree of parameters.

    Raises:
      ValueError: No parameter in any group, or a stack whose parameters have
        other numbers of layers.
    """
    leaves = trees.flatten(params)
    found = group_lasso.members(params, self.groups)
    # A tree without leaves is optax's stand-in for one, or nobody's part.
    if leaves and not found:
      raise ValueError(
        f"None of the {len(leaves)} parameters, such as {next(iter(leaves))!r},"
        " is in a group, so nothing would be shrunk; let `groups` return a name"
        " for some of them."
      )
    return [self._group(group, n, leaves) for group, n in found.items()]

  def _group(
    self, group: str, names: list[str], leaves: Mapping[str, Any]
  ) -> Group:
    size = sum(leaves[name].size for name in names)
    stacks = [bool(self.stacked and self.stacked(name)) for name in names]
    if not any(stacks):
      return Group(names, WEIGHTS[self.weights](size), False)
    lengths = {leaves[name].shape[:1] for name in names}
    if not all(stacks) or len(lengths) > 1 or lengths == {()}:
      shapes = {name: leaves[name].shape for name in names}
      raise ValueError(
        f"The group {group!r} is stacked in part, or to several lengths: "
        f"{shapes}; stack all of its parameters alike, or name several groups."
      )
    (length,) = lengths.pop()
    return Group(names, WEIGHTS[self.weights](size // length), True)

  def at(self, value: Any, count: jax.Array, extra: Mapping[str, Any]) -> Any:
    """Returns a number, or what a schedule has at this update.

    Raises:
      ValueError: The clock is not among the extra arguments.
    """
    if not callable(value):
      return jnp.asarray(value)
    if self.clock is None:
      return jnp.asarray(value(count))
    if self.clock not in extra:
      raise ValueError(
        f"The schedules' clock {self.clock!r} is not among the extra arguments "
        f"of update, {sorted(extra)}; pass {self.clock}=... to it."
      )
    return jnp.asarray(value(extra[self.clock]))


# Problems of all groups -> what becomes of their arrays.
Prox = Callable[[Sequence[shrinkage.Problem]], list[list[jax.Array]]]


def transform(
  kind: Any,
  penalty: Penalty,
  *,
  start: Callable[[Any], tuple[Any, ...]],
  advance: Callable[..., tuple[tuple[Any, ...], Any, Any]],
  prox: Prox,
) -> optax.GradientTransformationExtraArgs:
  """Returns the transform that moves parameters, and then shrinks groups.

  Args:
    kind: NamedTuple of the state: count, others, learning_rate, zero_groups.
    penalty: What is shrunk.
    start: Maps parameters to the state's count and others.
    advance: Maps these, gradients, parameters, all at least float32, and the
      learning rate to the next such state, the step that is added to the
      parameters, and the metric (None: Euclidean).
    prox: Shrinks groups.
  """

  def init(params):
    penalty.find(params)
    rate, zeros = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
    return kind(*start(trees.widened(params)), rate, zeros)

  def update(updates, state, params=None, *, alpha=None, **extra):
    if params is None:
      raise ValueError("A proximal step needs the parameters; pass params.")
    rate = penalty.at(penalty.learning_rate, state.count, extra)
    if alpha is None:
      alpha = penalty.at(penalty.alpha, state.count, extra)
    theta = trees.widened(params)
    inner, step, metric = advance(
      state[:-2], trees.widened(updates), theta, rate
    )
    threshold = rate * alpha * penalty.gain
    groups = penalty.find(params)
    moved = _shrink(
      theta, step, metric, groups=groups, threshold=threshold, prox=prox
    )
    moved = jax.tree.map(lambda u, p: u.astype(p.dtype), moved, params)
    zeros = _zeros(optax.apply_updates(params, moved), groups)
    return moved, kind(*inner, rate.astype(jnp.float32), zeros)

  return optax.GradientTransformationExtraArgs(init, update)


def _shrink(theta, step, metric, *, groups, threshold, prox):
  """Returns the step with the groups' parts of it led to their prox."""
  old, steps, h = (trees.flatten(tree) for tree in (theta, step, metric))
  problems = [
    shrinkage.Problem(
      [old[name] + steps[name] for name in group.names],
      [h[name] for name in group.names] if h else [],
      threshold * group.weight,
      group.stacked,
    )
    for group in groups
  ]
  led = {}
  for group, problem, z in zip(groups, problems, prox(problems), strict=True):
    for name, leaf in zip(group.names, z, strict=True):
      # (theta + u) - theta is not u: without a penalty, keep every digit.
      led[name] = jnp.where(
        problem.threshold > 0, leaf - old[name], steps[name]
      )
  return trees.update(step, led)


def _zeros(params, groups):
  """Returns the number of groups that are exactly zero, int32[]."""
  leaves = trees.flatten(params)
  counts = [jnp.zeros((), jnp.int32)]
  for group in groups:
    alive = [
      jnp.any(
        leaves[name] != 0,
        axis=tuple(range(1, leaves[name].ndim)) if group.stacked else None,
      )
      for name in group.names
    ]
    dead = ~jnp.stack(alive).any(axis=0)
    counts.append(jnp.sum(dead, dtype=jnp.int32))
  return jnp.stack(counts).sum(dtype=jnp.int32)
