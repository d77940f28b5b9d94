"""The part that proximal optimizers share: a step, then shrinkage."""

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

# Name -> weight of a lasso group in the penalty, from its number of scalars.
WEIGHTS: Mapping[str, Callable[[int], float]] = {
  "one": lambda size: 1.0,
  "sqrt_size": math.sqrt,
}


class Group(NamedTuple):
  """A lasso group, or a stack of lasso groups.

  Attributes:
    names: Names of its parameters.
    weight: Its weight in the penalty.
    stacked: Whether each index of the parameters' first axis is a lasso group.
  """

  names: list[str]
  weight: float
  stacked: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Penalty:
  """The group lasso: which parameters are shrunk, and by how much.

  The threshold of a lasso group is learning_rate * alpha * gain * its weight.

  Attributes:
    learning_rate: Number or schedule.
    alpha: Number or schedule.
    groups: Function from the name of a parameter to the name of its lasso
      group, or to None.
    weights: Key of WEIGHTS.
    clock: Name of the extra argument that schedules are functions of; None: the
      number of updates so far.
    stacked: Function that says whether the parameter of a name is a stack of
      layers; None: none is.
    gain: Factor of all thresholds.

  Raises:
    ValueError: A number is out of range, or `weights` is unknown.
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
        f"Unknown weights {self.weights!r} of lasso groups. "
        f"{registry.nearest(self.weights, WEIGHTS)}"
      )

  def find(self, params: Any) -> list[Group]:
    """Returns the lasso groups of a tree of parameters.

    Raises:
      ValueError: No parameter is in a lasso group, or the parameters of a stack
        have different numbers of layers.
    """
    leaves = trees.flatten(params)
    found = group_lasso.members(params, self.groups)
    # Optax also calls this with trees without leaves: masked placeholders.
    if leaves and not found:
      raise ValueError(
        f"None of the {len(leaves)} parameters, such as {next(iter(leaves))!r},"
        " is in a lasso group, so nothing would be shrunk; let `groups` return"
        " a name for some of them."
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
        f"The lasso group {group!r} is stacked in part, or its stacks have "
        f"different lengths: {shapes}; stack all of its parameters alike, or "
        "name several groups."
      )
    (length,) = lengths.pop()
    return Group(names, WEIGHTS[self.weights](size // length), True)

  def at(self, value: Any, count: jax.Array, extra: Mapping[str, Any]) -> Any:
    """Returns a number as an array, or the value of a schedule at this update.

    Args:
      value: Number or schedule.
      count: int32[], number of updates so far.
      extra: Extra arguments of ``update``, among them the clock.

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


# Maps the problems of all lasso groups to their solutions.
Prox = Callable[[Sequence[shrinkage.Problem]], list[list[jax.Array]]]


def transform(
  kind: Any,
  penalty: Penalty,
  *,
  start: Callable[[Any], tuple[Any, ...]],
  advance: Callable[..., tuple[tuple[Any, ...], Any, Any]],
  prox: Prox,
) -> optax.GradientTransformationExtraArgs:
  """Returns the transform that takes a step, and then shrinks lasso groups.

  The inner state below is the state's fields without the last two. Trees that
  `start` and `advance` get are at least float32.

  Args:
    kind: NamedTuple of the state, with the fields count, more of the
      optimizer's own, learning_rate, zero_groups.
    penalty: The group lasso.
    start: (parameters) -> inner state.
    advance: (inner state, gradients, parameters, learning rate) -> next inner
      state, step to add to the parameters, diagonal metric (None: Euclidean).
    prox: Shrinks lasso groups.
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
  """Returns the step to the proximal point, for parameters in lasso groups."""
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
      # (theta + u) - theta is rounded: without a penalty, take the exact u.
      led[name] = jnp.where(
        problem.threshold > 0, leaf - old[name], steps[name]
      )
  return trees.update(step, led)


def _zeros(params, groups):
  """Returns the number of lasso groups that are exactly zero, int32[]."""
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
