"""Outputs of modules inside a model."""

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
  """Returns a model's outputs, and those of some modules inside it.

  Args:
    model: A linen module.
    params: Its parameters.
    inputs: Input of the model's call.
    branches: Branches of these modules; the model must call each of them once.
    **how: Further arguments of model.apply.

  Returns:
    The outputs, and {branch: output of its module} in the given order.
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
