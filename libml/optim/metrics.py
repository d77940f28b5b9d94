"""Metrics of the last step that optimizer states hold for the log."""

from collections.abc import Iterator
from typing import Any
from typing import Protocol
from typing import runtime_checkable

import jax
import optax


@runtime_checkable
class Metrics(Protocol):
  """A transform's state that holds metrics for the log."""

  def metrics(self, group: str) -> dict[str, jax.Array]:
    """Returns {name: scalar} of the last step.

    Args:
      group: Name of the parameter group that the transform belongs to, or "".
        It must be part of the name of a metric that each group has.
    """
    ...


def last_metrics(opt_state: Any) -> dict[str, jax.Array]:
  """Returns the metrics of all transforms in a state, {name: scalar}."""
  found = {}
  for group, state in _holders(opt_state):
    found.update(state.metrics(group))
  return found


def _holders(tree: Any, group: str = "") -> Iterator[tuple[str, Metrics]]:
  """Yields the states that hold metrics, each with its parameter group."""
  kinds = (optax.transforms.PartitionState, Metrics)
  nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kinds))
  for node in nodes:
    if isinstance(node, optax.transforms.PartitionState):
      for name, inner in node.inner_states.items():
        yield from _holders(inner, str(name))
    elif isinstance(node, Metrics):
      yield group, node
