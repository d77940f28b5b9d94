"""Low-rank adapters beside dense layers, and their arithmetic on trees.

LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR
2022. An adapted layer computes

  y = x W + b + (alpha / R) (x A) B

with `lora_a` A [D_in, R] and `lora_b` B [R, D_out] beside the `kernel` W and
`bias` b of the plain layer, so pretrained trees load as they are. No layer
changes W; `merge` is a function of the tree of parameters.
"""

from __future__ import annotations

import dataclasses
import math
import re
import zlib
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from libml import trees

ADAPTER = ("lora_a", "lora_b")

# Loralib's default: A is uniform in +-1 / sqrt(D_in).
KAIMING_SLOPE = math.sqrt(5)

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Lora:
  """The dense layers with adapters, and their size; a ViT's `dense` field.

  Attributes:
    layers: Regular expression over whole module paths, such as
      r".*/(key|value)".
    rank: R, from 1 to the smaller of a layer's input and output widths.
    alpha: Numerator of the scale; None: the scale is 1.

  Raises:
    ValueError: On construction, for a rank below 1, an alpha that is not above
      0, or an invalid regular expression.
  """

  layers: str
  rank: int
  alpha: float | None = None

  def __post_init__(self):
    """Checks the fields."""
    if self.rank < 1:
      raise ValueError(
        f"model.lora.rank={self.rank} must be at least 1; for a model without "
        "adapters set model.lora=None."
      )
    if self.alpha is not None and not 0 < self.alpha < math.inf:
      raise ValueError(
        f"model.lora.alpha={self.alpha} must be a finite number above 0, or "
        "None for a scale of 1."
      )
    try:
      re.compile(self.layers)
    except re.error as error:
      raise ValueError(
        f"model.lora.layers={self.layers!r} must be a regular expression over "
        f"module paths, such as '.*/(key|value)': {error}."
      ) from None

  @property
  def scale(self) -> float:
    """Factor of A B."""
    return 1.0 if self.alpha is None else self.alpha / self.rank

  def __call__(self, features: Any, **options: Any) -> nn.Module:
    """Builds one layer from nn.DenseGeneral's arguments."""
    return LoraDense(features, lora=self, **options)

  def check(self, params: Params, blocks: Sequence[str]) -> None:
    """Raises ValueError if no layer has an adapter; the error lists layers.

    Args:
      params: Parameters of the model.
      blocks: Branches of its blocks.
    """
    if jax.tree.leaves(split(params)[1]):
      return
    modules = set()
    for name in trees.flatten(params):
      layer, _, leaf = name.rpartition("/")
      block = trees.holder(layer, blocks)
      if block and leaf == "kernel":
        modules.add(re.sub(r"_\d+", "_*", block) + layer.removeprefix(block))
    raise ValueError(
      f"model.lora.layers={self.layers!r} matches no dense layer; the layers "
      f"are {', '.join(sorted(modules))}."
    )


class LoraDense(nn.DenseGeneral):
  """nn.DenseGeneral, with an adapter if its path matches `lora.layers`.

  Attributes:
    lora: The layers with adapters, and their size.
  """

  lora: Any = None

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Maps inputs [..., *D_in] to [..., *D_out]; see nn.DenseGeneral.

    Raises:
      ValueError: The rank exceeds the smaller of D_in and D_out.
    """
    y = super().__call__(inputs)
    path = "/".join(self.path)
    if not re.fullmatch(self.lora.layers, path):
      return y
    given = self.features
    features = (given,) if isinstance(given, int) else tuple(given)
    lead = y.shape[: y.ndim - len(features)]
    x = inputs.reshape(*lead, -1)
    width, out, rank = x.shape[-1], math.prod(features), self.lora.rank
    if rank > min(width, out):
      raise ValueError(
        f"model.lora.rank={rank} is too large for {path}, which maps {width} "
        f"values to {out}; set it to 1 to {min(width, out)}."
      )
    lora_a = self.param(
      "lora_a", _draw_a, (width, rank), self.param_dtype
    ).astype(y.dtype)
    lora_b = self.param(
      "lora_b", nn.initializers.zeros, (rank, out), self.param_dtype
    ).astype(y.dtype)
    dot = self.dot_general or jax.lax.dot_general
    last = (((x.ndim - 1,), (0,)), ((), ()))
    low = dot(x.astype(y.dtype), lora_a, last, precision=self.precision)
    change = dot(low, lora_b, last, precision=self.precision)
    return y + self.lora.scale * change.reshape(y.shape)


def _draw_a(rng, shape, dtype, slope=KAIMING_SLOPE):
  bound = math.sqrt(6 / ((1 + slope**2) * shape[0]))
  return jax.random.uniform(rng, shape, dtype, -bound, bound)


def _draw_b(rng, shape, dtype):
  column, value = jax.random.split(rng)
  columns = jax.random.randint(column, shape[:1], 0, shape[1])
  values = 0.01 * jax.random.normal(value, shape[:1], dtype)
  return jax.nn.one_hot(columns, shape[1], dtype=dtype) * values[:, None]


def _last(name: str) -> str:
  return name.rpartition("/")[2]


def split(params: Params) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the tree without adapters, and a tree of the adapters only."""
  base, adapters = {}, {}
  for name, leaf in trees.flatten(params).items():
    (adapters if _last(name) in ADAPTER else base)[name] = leaf
  return trees.unflatten(base), trees.unflatten(adapters)


def join(base: Params, adapters: Params) -> dict[str, Any]:
  """Returns one tree of both: undoes `split`; adapters replace base's own."""
  return trees.unflatten({**trees.flatten(base), **trees.flatten(adapters)})


def check_trained(trainable: Params) -> None:
  """Raises ValueError if the model has adapters and the optimizer trains none.

  Args:
    trainable: Booleans, of the parameters' structure.
  """
  flat = trees.flatten(trainable)
  trained = [on for name, on in flat.items() if name.endswith("/lora_b")]
  if trained and not any(trained):
    raise ValueError(
      "The model has LoRA adapters, but the optimizer trains none; put a group "
      "with the pattern '.*/lora_[ab]' and settings before the others in "
      "optimizer.groups, or set model.lora=None."
    )


def restart(
  adapters: Params,
  rng: jax.Array,
  *,
  slope: float = KAIMING_SLOPE,
  lora_b: str = "zeros",
) -> dict[str, Any]:
  """Returns newly drawn adapters; every leaf has a key of its own.

  A is uniform in +-sqrt(6 / ((1 + slope^2) D_in)): +-1 / sqrt(D_in) with the
  default slope sqrt(5) (loralib, LoRA-Sub), +-0.343 / sqrt(D_in) with sqrt(50)
  (GS-LoRA).

  Args:
    adapters: From `split`; arrays or their shapes.
    rng: Typed key.
    slope: Slope of the Kaiming-uniform draw.
    lora_b: "zeros", or "sparse": one element of each row of B is drawn from
      N(0, 0.01^2) (LoRA-Sub's first code), so that A has a gradient at once.

  Raises:
    ValueError: lora_b is neither.
  """
  check_start(lora_b)
  fresh = {}
  for name, leaf in trees.flatten(adapters).items():
    key = jax.random.fold_in(rng, zlib.crc32(name.encode()))
    if _last(name) == "lora_a":
      fresh[name] = _draw_a(key, leaf.shape, leaf.dtype, slope)
    elif lora_b == "sparse":
      fresh[name] = _draw_b(key, leaf.shape, leaf.dtype)
    else:
      fresh[name] = jnp.zeros(leaf.shape, leaf.dtype)
  return trees.unflatten(fresh)


def check_start(lora_b: str) -> None:
  """Raises ValueError unless lora_b is "zeros" or "sparse"."""
  if lora_b not in ("zeros", "sparse"):
    raise ValueError(f"lora_b={lora_b!r} must be 'zeros' or 'sparse'.")


def products(adapters: Params, scale: float) -> Iterator[tuple[str, Any]]:
  """Yields each kernel's name and scale A B [D_in, D_out], in A's type.

  Args:
    adapters: May hold other parameters, too; NumPy arrays give NumPy arrays.
    scale: Factor of A B.
  """
  flat = trees.flatten(adapters)
  for name, lora_a in flat.items():
    if _last(name) == "lora_a":
      layer = name.removesuffix("lora_a")
      with jax.default_matmul_precision("highest"):
        product = lora_a @ flat[f"{layer}lora_b"]
      yield f"{layer}kernel", scale * product


def deltas(params: Params, scale: float) -> dict[str, Any]:
  """Returns scale A B of every adapter, under its kernel's name and shape."""
  flat = trees.flatten(params)
  return trees.unflatten(
    {
      name: change.reshape(flat[name].shape)
      for name, change in products(params, scale)
    }
  )


def subtract(
  params: Params, changes: Params, times: float = 1.0
) -> dict[str, Any]:
  """Returns the tree with kernels W - times * change; other leaves as they are.

  Args:
    params: All parameters.
    changes: Changes under the names of their kernels, as `deltas` returns them.
    times: Factor of the changes; -1 adds them.
  """
  flat = trees.flatten(params)
  for name, change in trees.flatten(changes).items():
    # Keep the bits of W where the change is 0: -0. + 0. would give +0.
    kept, moved = flat[name], flat[name] - times * change
    flat[name] = jnp.where(change == 0, kept, moved)
  return trees.unflatten(flat)


def merge(params: Params, scale: float) -> dict[str, Any]:
  """Returns the tree with adapters merged: kernels W + scale A B, and B = 0.

  The model computes the same function with it.

  Args:
    params: All parameters.
    scale: Factor of A B.
  """
  merged = subtract(params, deltas(params, scale), times=-1)
  return trees.map_named(
    lambda name, leaf: (
      jnp.zeros_like(leaf) if _last(name) == "lora_b" else leaf
    ),
    merged,
  )
