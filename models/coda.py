"""CODA-Prompt's components: prompts that each image mixes by attention.

Smith et al., "CODA-Prompt: COntinual Decomposed Attention-based Prompting for
Rehearsal-Free Continual Learning", CVPR 2023; details as in the released code.
Each prompted layer has M components, a prompt p_m, a key k_m and an attention
vector a_m. With q the query of an image, * elementwise:

  P = sum_m cos(q * a_m, k_m) p_m

The first half of P's rows is the layer's key prefix, the second half its value
prefix. Parameters: {"prompt" [E, M, L, D], "key" [E, M, D], "attention" [E, M,
D]}, over the E prompted layers.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Components = Mapping[str, jax.Array]

_HIGHEST = jax.lax.Precision.HIGHEST
# Square of the smallest norm that a vector is divided by.
_FLOOR = 1e-24


def empty(
  layers: int, pool_size: int, *, length: int, width: int, dtype: DTypeLike
) -> dict[str, jax.Array]:
  """Returns components that are all 0: no task has drawn any yet.

  Args:
    layers: E, the number of prompted layers.
    pool_size: M, number of components of a layer, for all tasks.
    length: L, the rows of a prompt: half keys, half values.
    width: D.
    dtype: Type of the parameters.
  """
  return {
    "prompt": jnp.zeros((layers, pool_size, length, width), dtype),
    "key": jnp.zeros((layers, pool_size, width), dtype),
    "attention": jnp.zeros((layers, pool_size, width), dtype),
  }


def draw(
  components: Components, rng: jax.Array, count: int
) -> dict[str, jax.Array]:
  """Returns `count` standard normal vectors for each layer and kind.

  Args:
    components: Names and shapes are read.
    rng: Typed key; each kind's name is folded into it.
    count: n, number of components that a task adds.

  Returns:
    {"prompt" [E, n, L D], "key" [E, n, D], "attention" [E, n, D]}.
  """
  drawn = {}
  for name, leaf in components.items():
    shape = (leaf.shape[0], count, leaf[0, 0].size)
    key = jax.random.fold_in(rng, zlib.crc32(name.encode()))
    drawn[name] = jax.random.normal(key, shape, jnp.float32)
  return drawn


def begin(
  components: Components, draws: Components, start: jax.Array
) -> dict[str, jax.Array]:
  """Replaces a task's rows by orthonormal vectors; later rows are set to 0.

  Args:
    components: Rows before `start` are kept.
    draws: From `draw`; n rows a layer.
    start: int32[], the task's first row; may be traced.

  Returns:
    The components; rows start to start + n - 1 are new.
  """
  fill = jax.vmap(orthogonalize, in_axes=(0, 0, None))
  found = {}
  for name, leaf in components.items():
    rows = leaf.reshape(*leaf.shape[:2], -1)
    filled = fill(rows.astype(jnp.float32), draws[name], start)
    found[name] = filled.reshape(leaf.shape).astype(leaf.dtype)
  return found


def orthogonalize(
  rows: jax.Array, draws: jax.Array, start: jax.Array
) -> jax.Array:
  """Returns rows [M, K], n of them replaced by classical Gram-Schmidt.

  Row i = start, start + 1, ... becomes u_i = v - sum_{j<i} <v, u_j> / |u_j|^2
  u_j, v its draw; at the end the new rows are scaled to unit length. Training
  has moved the earlier rows, which are no longer orthogonal to each other, so
  the new ones are only nearly orthogonal to them, as in the released code. The
  released code draws again where |u|^2 < 1e-8; that is left out, because n <= M
  <= K normal draws do not come near that value.

  Args:
    rows: Those from `start` on are replaced or set to 0.
    draws: [n, K], with start + n <= M <= K.
    start: int32[], may be traced.
  """
  count = draws.shape[0]
  old = (jnp.arange(rows.shape[0]) < start)[:, None]

  def add(i: jax.Array, rows: jax.Array) -> jax.Array:
    square = jnp.sum(rows**2, axis=1)  # 0 for rows that are not there yet
    along = jnp.matmul(rows, draws[i], precision=_HIGHEST)
    along = along / jnp.where(square > 0, square, 1.0)
    rest = draws[i] - jnp.matmul(along, rows, precision=_HIGHEST)
    return jax.lax.dynamic_update_slice_in_dim(
      rows, rest[None], start + i, axis=0
    )

  kept = jnp.where(old, rows, 0.0)
  rows = jax.lax.fori_loop(0, count, add, kept)
  norms = jnp.sqrt(jnp.sum(rows**2, axis=1, keepdims=True))
  return jnp.where(old, kept, rows / jnp.where(norms > 0, norms, 1.0))


def hold(components: Components, trained: jax.Array) -> dict[str, jax.Array]:
  """Returns the components; those outside `trained` bool[M] get no gradient."""

  def held(leaf: jax.Array) -> jax.Array:
    on = trained.reshape(1, -1, *[1] * (leaf.ndim - 2))
    return jnp.where(on, leaf, jax.lax.stop_gradient(leaf))

  return {name: held(leaf) for name, leaf in components.items()}


def mix(components: Components, query: jax.Array, used: jax.Array) -> jax.Array:
  """Returns the prompts P of each image, float32 [E, B, L, D].

  Args:
    components: Of E layers.
    query: [B, D].
    used: bool[M], the components of the tasks so far.
  """
  f32 = {name: leaf.astype(jnp.float32) for name, leaf in components.items()}
  query, attention = query.astype(jnp.float32), f32["attention"]
  key = f32["key"]
  key = key * jax.lax.rsqrt(
    jnp.maximum(jnp.sum(key**2, axis=-1, keepdims=True), _FLOOR)
  )
  # <q * a, k> and |q * a|^2 as products of matrices, without [E, B, M, D].
  product = _contract("bd,emd->ebm", query, attention * key)
  square = _contract("bd,emd->ebm", query**2, attention**2)
  cosine = product * jax.lax.rsqrt(jnp.maximum(square, _FLOOR))
  cosine = jnp.where(used[None, None], cosine, 0.0)
  return _contract("ebm,emld->ebld", cosine, f32["prompt"])


def prefixes(
  prompts: jax.Array, layers: Sequence[int], num_heads: int
) -> dict[int, dict[str, jax.Array]]:
  """Returns a ViT's prompts: for each layer "prefix" [2, B, L/2, H, K].

  Args:
    prompts: [E, B, L, D], keys before values.
    layers: The E prompted layers.
    num_heads: H.
  """
  _, batch, length, width = prompts.shape
  shape = (2, length // 2, num_heads, width // num_heads)
  split = prompts.reshape(len(layers), batch, *shape)
  split = split.transpose(0, 2, 1, 3, 4, 5)
  return {
    layer: {"prefix": prefix}
    for layer, prefix in zip(layers, split, strict=True)
  }


def penalty(components: Components, used: jax.Array) -> jax.Array:
  """Returns how far the components are from orthonormal, float32[].

  For each layer and kind it is the mean of (V V^T - I)^2 over all pairs of used
  components, the rows of V; the means are summed.

  Args:
    components: Of E layers.
    used: bool[M], the components of the tasks so far.
  """
  pairs = (used[:, None] & used[None, :])[None]
  total = jnp.zeros((), jnp.float32)
  for leaf in components.values():
    rows = leaf.reshape(*leaf.shape[:2], -1).astype(jnp.float32)
    gram = _contract("emk,enk->emn", rows, rows)
    error = jnp.where(pairs, gram - jnp.eye(rows.shape[1])[None], 0.0)
    total += jnp.sum(error**2) / jnp.sum(pairs)
  return total


def _contract(formula: str, *arrays: Any) -> jax.Array:
  return jnp.einsum(formula, *arrays, precision=_HIGHEST)
