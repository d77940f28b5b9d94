"""The mesh, and where each array of a run lies on it."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from libml import paths
from libml import registry

# Below this size, in bytes, an array is cheaper to copy than to gather.
_FSDP_MIN_BYTES = 4 * 2**20
_NAMED = ("replicate", "fsdp")

Rules = Sequence[tuple[str, Any]]


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
  """Returns the mesh ("data", "model") over all devices of all processes.

  Args:
    data: Devices along the batch; -1 takes all that `model` leaves.
    model: Devices along the model's own dimensions.

  Raises:
    ValueError: Sizes that do not multiply to the number of devices.
  """
  count = jax.device_count()
  if data == -1:
    data = count // model
  if data * model != count:
    raise ValueError(
      f"A mesh of data={data} x model={model} does not fit {count} devices; "
      "their product must be that number (data=-1 fills up)."
    )
  # With Explicit axes, the default, plain linen modules fail to type-check.
  return jax.make_mesh(
    (data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2
  )


def _spec(rule: Any, shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> P:
  if rule == "replicate":
    return P()
  if rule == "fsdp":
    size = math.prod(shape) * np.dtype(dtype).itemsize
    ways = mesh.shape["data"]
    axes = [i for i, n in enumerate(shape) if n % ways == 0]
    if size < _FSDP_MIN_BYTES or not axes:
      return P()
    largest = max(axes, key=lambda i: shape[i])
    return P(*("data" if i == largest else None for i in range(len(shape))))
  if isinstance(rule, str):
    raise ValueError(
      f"Unknown sharding rule {rule!r}. {registry.nearest(rule, _NAMED)} "
      "Or a tuple of axis names."
    )
  return P(*rule)


def infer(tree: Any, rules: Rules, mesh: Mesh) -> Any:
  """Returns the tree of shardings that the rules give.

  Args:
    tree: Arrays or their shapes.
    rules: Ordered (pattern of the whole leaf name, "replicate" | "fsdp" |
      tuple of axis names); the first match wins, no match replicates.
    mesh: Where to.
  """

  def choose(name, leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return NamedSharding(mesh, P())
    for pattern, rule in rules:
      if re.fullmatch(pattern, name):
        return NamedSharding(mesh, _spec(rule, leaf.shape, leaf.dtype, mesh))
    return NamedSharding(mesh, P())

  return paths.map_named(choose, tree)


def place(tree: Any, rules: Rules, mesh: Mesh) -> Any:
  """Puts every leaf where the rules want it; free where it already is."""
  return jax.device_put(tree, infer(tree, rules, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(mesh, P())


def place_batch(batch: Any, mesh: Mesh) -> Any:
  """Joins each process's rows [b, ...] to global arrays [B, ...]."""
  sharding = NamedSharding(mesh, P("data"))
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )
