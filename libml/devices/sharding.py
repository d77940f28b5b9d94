"""The device mesh, and how arrays are sharded over it."""

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

from libml import registry
from libml import trees

# Arrays below this size in bytes are cheaper to replicate than to gather.
_FSDP_MIN_BYTES = 4 * 2**20
_NAMED = ("replicate", "fsdp", "fsdp:BYTES")

Rules = Sequence[tuple[str, Any]]


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
  """Returns the mesh ("data", "model") over all devices of all processes.

  Args:
    data: Devices along the batch dimension; -1: all devices / `model`.
    model: Devices along dimensions of the weights.

  Raises:
    ValueError: data * model is not the number of devices.
  """
  count = jax.device_count()
  if data == -1 and model > 0:
    data = count // model
  if min(data, model) < 1 or data * model != count:
    raise ValueError(
      f"A mesh of data={data} x model={model} does not fit {count} devices; "
      f"the product must be {count}. Set mesh.model to a divisor of {count}, "
      "and mesh.data to -1."
    )
  # With Explicit axes, the default, plain linen modules fail to type-check.
  return jax.make_mesh(
    (data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2
  )


def _spec(rule: Any, shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> P:
  """Returns the partition of an array by a rule, as in `infer`."""
  if rule == "replicate":
    return P()
  if isinstance(rule, str):
    if not re.fullmatch(r"fsdp(:\d+)?", rule):
      raise ValueError(
        f"Unknown sharding rule {rule!r}. {registry.nearest(rule, _NAMED)} "
        "A tuple of axis names is allowed, too."
      )
    least = int(rule.partition(":")[2] or _FSDP_MIN_BYTES)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    ways = mesh.shape["data"]
    axes = [i for i, n in enumerate(shape) if n % ways == 0]
    if size < least or not axes:
      return P()
    largest = max(axes, key=lambda i: shape[i])
    return P(*("data" if i == largest else None for i in range(len(shape))))
  if len(rule) > len(shape):
    raise ValueError(
      f"{rule} names {len(rule)} axes of an array of {shape}; name at most "
      f"{len(shape)}."
    )
  for size, axis in zip(shape, rule, strict=False):
    if axis is not None and axis not in mesh.shape:
      raise ValueError(
        f"There is no mesh axis {axis!r}; known: {tuple(mesh.shape)}."
      )
    if axis is not None and size % mesh.shape[axis]:
      raise ValueError(
        f"{rule} cuts a dimension of {size} (array {shape}) among the "
        f"{mesh.shape[axis]} devices of the mesh axis {axis!r}, which do not "
        f"divide it; set mesh.{axis} to a divisor of {size}, or change the "
        "rule in config.sharding."
      )
  return P(*rule)


def infer(tree: Any, rules: Rules, mesh: Mesh) -> Any:
  """Returns the tree of shardings that the rules give.

  Args:
    tree: Arrays, or jax.ShapeDtypeStructs.
    rules: Ordered pairs (pattern of the whole leaf name, rule). The first match
      wins; a leaf without a match is replicated. A rule is "replicate",
      "fsdp", "fsdp:BYTES", or a tuple of mesh axes, one (or None) for each
      dimension. "fsdp" divides the largest dimension that the "data" axis can
      divide, in arrays of at least 4 MiB, or BYTES.
    mesh: The device mesh.

  Raises:
    ValueError: A rule is unknown or does not fit its leaf.
  """

  def choose(name, leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return NamedSharding(mesh, P())
    for pattern, rule in rules:
      if re.fullmatch(pattern, name):
        try:
          spec = _spec(rule, leaf.shape, leaf.dtype, mesh)
        except ValueError as error:
          raise ValueError(
            f"Sharding rule {pattern!r} for {name}: {error}"
          ) from None
        return NamedSharding(mesh, spec)
    return NamedSharding(mesh, P())

  return trees.map_named(choose, tree)


def place(tree: Any, rules: Rules, mesh: Mesh) -> Any:
  """Moves every leaf to its sharding by the rules.

  A leaf that has its sharding already is not copied. Leaves on the host, or on
  devices of one process, must be equal on all processes.

  Args:
    tree: Arrays.
    rules: As in `infer`.
    mesh: The device mesh.
  """
  shardings = infer(tree, rules, mesh)
  if mesh.is_multi_process:
    return jax.tree.map(_put, tree, shardings)
  return jax.device_put(tree, shardings)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
  if not getattr(leaf, "is_fully_addressable", True):
    return jax.device_put(leaf, sharding)
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    data = _put(jax.random.key_data(leaf), sharding)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
  # device_put would send each array to all processes to compare it.
  host = np.asarray(leaf)
  return jax.make_array_from_callback(
    host.shape, sharding, lambda index: host[index]
  )


def to_host(tree: Any, mesh: Mesh) -> Any:
  """Returns the whole arrays on the host; all processes must call this."""
  whole = replicated(mesh)
  return jax.tree.map(lambda x: jax.device_get(jax.device_put(x, whole)), tree)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that puts the whole array on every device."""
  return NamedSharding(mesh, P())


def batch_part(mesh: Mesh) -> tuple[int, int]:
  """Returns (index, count): this process loads part index of each batch.

  Processes whose devices are in the same rows of the mesh load the same part.

  Raises:
    ValueError: Two processes share some rows of the mesh but not all.
  """
  rows: dict[int, list[int]] = {}
  for number, row in enumerate(mesh.devices):
    for process in {device.process_index for device in row}:
      rows.setdefault(process, []).append(number)
  parts = sorted({tuple(held) for held in rows.values()})
  if sum(len(part) for part in parts) != mesh.shape["data"]:
    raise ValueError(
      f"In the mesh {dict(mesh.shape)} two processes share some rows of "
      "devices but not all; choose mesh.model so that it divides the number of "
      "devices per process, or is a multiple of it."
    )
  return parts.index(tuple(rows[jax.process_index()])), len(parts)


def place_batch(batch: Any, mesh: Mesh) -> Any:
  """Joins the rows [b, ...] of each process to global arrays [B, ...]."""
  sharding = NamedSharding(mesh, P("data"))
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )
