"""What modules inside a model put out."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Mapping
from typing import Any


def capture(
  model: Any,
  params: Any,
  inputs: Mapping[str, Any],
  branches: Collection[str],
  **how: Any,
) -> tuple[Any, dict[str, Any]]:
  """Returns a model's outputs, and what some of its modules put out.

  Args:
    model: A linen module.
    params: Its parameters.
    inputs: As its call takes them.
    branches: Of the modules; each is called once.
    **how: Further arguments of model.apply.

  Returns:
    The outputs, and {branch: output of its module} in the order given.
  """
  outputs, seen = model.apply(
    {"params": params},
    inputs,
    capture_intermediates=lambda module, _: "/".join(module.path) in branches,
    mutable=["intermediates"],
    **how,
  )
  found = {}
  for branch in branches:
    place = seen["intermediates"]
    for key in branch.split("/"):
      place = place[key]
    (found[branch],) = place["__call__"]
  return outputs, found
