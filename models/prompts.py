"""Prompts of L2P and DualPrompt, as a module beside the ViT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from models import selection

INITS = {
  "uniform": nn.initializers.uniform(0.01),
  "normal": nn.initializers.normal(0.01),
}
KEY_INITS = {
  "uniform": nn.initializers.uniform(0.01),
  "zero": nn.initializers.zeros,
}


class Pool(nn.Module):
  """Parameters of a pool; without key_shape there is no key parameter."""

  shape: tuple[int, ...]
  key_shape: tuple[int, ...] | None
  prompt_init: str
  key_init: str
  param_dtype: DTypeLike

  @nn.compact
  def __call__(self) -> tuple[jax.Array, jax.Array | None]:
    """Returns the prompts and the keys."""
    prompt = self.param(
      "prompt", INITS[self.prompt_init], self.shape, self.param_dtype
    )
    if self.key_shape is None:
      return prompt, None
    init = KEY_INITS[self.key_init]
    return prompt, self.param("key", init, self.key_shape, self.param_dtype)


class Prompts(nn.Module, kw_only=True):
  """A pool of prompts chosen by key (E), and prompts shared by all (G).

  L2P: Wang et al., "Learning to Prompt for Continual Learning", CVPR 2022.
  DualPrompt: Wang et al., ECCV 2022. Prompt tuning puts tokens into the
  sequence, prefix tuning keys and values into the attention.

  Parameters: "prompt_pool/key" [M, D], one table for all layers;
  "prompt_pool/prompt" [E layers, M, P, D], as prefix [E layers, 2, M, P, H,
  K]; "prefix" (G) [depth, 2, G, H, K], as tokens [depth, G, D]; "reweight".
  None of these names is the ViT's, so one tree {**vit, **prompts} serves both
  modules; each ignores the other's leaves.

  Attributes:
    width: D of the ViT.
    num_heads: H of the ViT.
    depth: Number of layers of the ViT.
    e_layers: Layers that get prompts of the pool; empty: no pool.
    e_prefix: Whether those are prefixes instead of tokens.
    pool_size: M.
    length: Tokens of one prompt.
    top_k: Prompts that an example gets.
    prompt_key: Whether keys are parameters; if not, the key of a prompt is
      its mean over layers and tokens.
    prompt_init: "uniform" U[0, 0.01) or "normal" N(0, 0.01^2), E and G alike.
    key_init: "uniform" U[0, 0.01) or "zero".
    e_same_key_value: Whether one tensor is both key and value prefix (axis 1
      then has size 1).
    g_layers: Layers that get the shared prompt; empty: none.
    g_prefix: Whether that is a prefix instead of tokens.
    g_length: Tokens of the shared prompt.
    g_same_key_value: As e_same_key_value.
    reweight: Whether the ViT's classifier "prompt" weights the prompt tokens
      by a learned softmax.
    param_dtype: Type of the parameters.

  Raises:
    ValueError: On construction, if fields do not fit together.
  """

  width: int
  num_heads: int
  depth: int
  e_layers: tuple[int, ...] = (0,)
  e_prefix: bool = False
  pool_size: int = 0
  length: int = 0
  top_k: int = 0
  prompt_key: bool = True
  prompt_init: str = "uniform"
  key_init: str = "uniform"
  e_same_key_value: bool = False
  g_layers: tuple[int, ...] = ()
  g_prefix: bool = True
  g_length: int = 5
  g_same_key_value: bool = False
  reweight: bool = False
  param_dtype: DTypeLike = jnp.float32

  def __post_init__(self) -> None:
    """Rejects fields that do not fit together."""
    self.e_layers = self._layers("e_layers", self.e_layers)
    self.g_layers = self._layers("g_layers", self.g_layers)
    if self.width % self.num_heads:
      raise ValueError(
        f"width={self.width} is not a multiple of num_heads={self.num_heads}:"
        " take both from the ViT."
      )
    for name, table in (("prompt_init", INITS), ("key_init", KEY_INITS)):
      if getattr(self, name) not in table:
        raise ValueError(
          f"Unknown {name}={getattr(self, name)!r}; known: {tuple(table)}."
        )
    if self.e_layers:
      if min(self.pool_size, self.length, self.top_k) < 1:
        raise ValueError(
          f"pool_size={self.pool_size}, length={self.length} and"
          f" top_k={self.top_k} must be at least 1, or e_layers=() for no pool."
        )
      if self.top_k > self.pool_size:
        raise ValueError(
          f"top_k={self.top_k} prompts cannot be chosen from a pool of"
          f" pool_size={self.pool_size}: lower one or raise the other."
        )
      if self.e_prefix and not self.prompt_key:
        raise ValueError(
          "prompt_key=False computes keys from prompt tokens, but e_prefix=True"
          " has no tokens: set prompt_key=True."
        )
    if self.g_layers and self.g_length < 1:
      raise ValueError(
        f"g_length={self.g_length} must be at least 1, or g_layers=() for no"
        " shared prompt."
      )
    if self.reweight and not self.num_tokens:
      raise ValueError(
        "reweight=True weights prompt tokens, but there are none: set"
        " e_prefix=False, or reweight=False."
      )
    super().__post_init__()

  def _layers(self, name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, int):
      raise ValueError(
        f"{name}={value} must be a list: write {name}=[{value}]."
      )
    value = tuple(value)
    if len(set(value)) < len(value) or set(value) - set(range(self.depth)):
      raise ValueError(
        f"{name}={list(value)} must be distinct layers, counted from 0 to"
        f" {self.depth - 1}."
      )
    return value

  @property
  def num_tokens(self) -> int:
    """P, the prompt tokens in the sequence after the last layer."""
    pool = 0 if self.e_prefix else self.top_k * self.length
    shared = 0 if self.g_prefix else self.g_length
    return len(self.e_layers) * pool + len(self.g_layers) * shared

  @nn.compact
  def __call__(
    self,
    query: jax.Array,
    *,
    task: jax.Array | None = None,
    vote_group: int | None = None,
    mask: jax.Array | None = None,
  ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Chooses prompts and lays them out for the ViT.

    Args:
      query: [B, D]; a caller that does not train it stops its gradient.
      task: int32[] or [B], may be traced; an example gets the prompts [task
        K, (task + 1) K) if the pool holds them, else those that it would get
        without a task.
      vote_group: Number of neighbouring examples that get the same prompts,
        those that most of them chose. None: each gets its own nearest ones.
      mask: bool[B]; examples where it is False neither vote nor count in
        reduce_sim.

    Returns:
      The ViT's inputs beside the image, {"prompts": {layer: {"tokens" [B, P,
      D] and / or "prefix" [2, B, L, H, K]}}} and, with reweight, "reweight"
      [P]; and the selection, empty without a pool: "prompt_idx" [B, K],
      "sim" [B, M] cosines, "reduce_sim" [] the sum of cosines over the chosen
      keys averaged over the examples, "selected_key" [B, K, D] at unit
      length.

    Raises:
      ValueError: If vote_group does not divide B.
    """
    batch = query.shape[0]
    parts: dict[int, dict[str, list[jax.Array]]] = {}
    if self.g_layers:
      shared = self._shared(batch)
      kind = "prefix" if self.g_prefix else "tokens"
      for layer in self.g_layers:
        parts.setdefault(layer, {}).setdefault(kind, []).append(shared[layer])
    chosen = {}
    if self.e_layers:
      batched, chosen = self._pool(query, task, vote_group, mask)
      kind = "prefix" if self.e_prefix else "tokens"
      for layer, value in zip(self.e_layers, batched, strict=True):
        parts.setdefault(layer, {}).setdefault(kind, []).append(value)
    axis = {"tokens": 1, "prefix": 2}
    inputs: dict[str, Any] = {
      "prompts": {
        layer: {
          kind: jnp.concatenate(values, axis=axis[kind])
          for kind, values in kinds.items()
        }
        for layer, kinds in parts.items()
      }
    }
    if self.reweight:
      inputs["reweight"] = self.param(
        "reweight", nn.initializers.zeros, (self.num_tokens,), self.param_dtype
      )
    return inputs, chosen

  def _shared(self, batch: int) -> jax.Array:
    """Returns G, [depth, 2, B, G, H, K] or [depth, B, G, D]."""
    init = INITS[self.prompt_init]
    if not self.g_prefix:
      shape = (self.depth, self.g_length, self.width)
      shared = self.param("prefix", init, shape, self.param_dtype)[:, None]
      return jnp.broadcast_to(shared, (self.depth, batch, *shape[1:]))
    shape = self._prefix_shape(self.g_length, self.g_same_key_value)
    shape = (self.depth, *shape)
    shared = self.param("prefix", init, shape, self.param_dtype)[:, :, None]
    return jnp.broadcast_to(shared, (self.depth, 2, batch, *shape[2:]))

  def _pool(
    self,
    query: jax.Array,
    task: jax.Array | None,
    vote_group: int | None,
    mask: jax.Array | None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns E, [E layers, 2, B, P, H, K] or [E layers, B, P, D], and ids."""
    shape = (len(self.e_layers), self.pool_size, self.length, self.width)
    if self.e_prefix:
      kind, *rest = self._prefix_shape(self.length, self.e_same_key_value)
      shape = (len(self.e_layers), kind, self.pool_size, *rest)
    prompt, key = Pool(
      shape=shape,
      key_shape=(self.pool_size, self.width) if self.prompt_key else None,
      prompt_init=self.prompt_init,
      key_init=self.key_init,
      param_dtype=self.param_dtype,
      name="prompt_pool",
    )()
    if key is None:
      key = prompt.mean(axis=(0, 2))
    key = selection.normalize(key)
    # Lower precision (TF32, bf16 passes) would change which prompts are chosen.
    sim = jnp.matmul(selection.normalize(query), key.T, precision="highest")
    idx = selection.select(
      sim, self.top_k, task=task, vote_group=vote_group, mask=mask
    )
    chosen = {
      "prompt_idx": idx,
      "sim": sim,
      "reduce_sim": selection.mean_similarity(sim, idx, mask),
      "selected_key": key[idx],
    }
    batch, tokens = idx.shape[0], self.top_k * self.length
    if not self.e_prefix:
      batched = prompt[:, idx]  # [E layers, B, top_k, length, D]
      return batched.reshape(shape[0], batch, tokens, self.width), chosen
    batched = prompt[:, :, idx]  # [E layers, 1 or 2, B, top_k, length, H, K]
    batched = batched.reshape(*shape[:2], batch, tokens, *shape[4:])
    return jnp.broadcast_to(batched, (shape[0], 2, *batched.shape[2:])), chosen

  def _prefix_shape(self, length: int, same: bool) -> tuple[int, ...]:
    head = self.width // self.num_heads
    return (1 if same else 2, length, self.num_heads, head)


def transfer_block(
  params: Mapping[str, Any],
  task: jax.Array | np.integer,
  top_k: int,
  *,
  prompts: bool,
  keys: bool,
) -> dict[str, Any]:
  """Copies the previous task's prompts to the rows of a task's own prompts.

  Copies rows [(task - 1) K, task K) of the pool to [task K, (task + 1) K). For
  task 0, and where the pool does not hold the rows, nothing changes.

  Args:
    params: Tree with "prompt_pool".
    task: int32[], may be traced.
    top_k: K, at most the size of the pool.
    prompts: Whether prompts are copied.
    keys: Whether keys are copied; needs a key parameter.

  Returns:
    The tree, other leaves as they are.
  """

  def copy(leaf, axis):
    fits = (task > 0) & ((task + 1) * top_k <= leaf.shape[axis])
    block = jax.lax.dynamic_slice_in_dim(
      leaf, (task - 1) * top_k, top_k, axis=axis
    )
    moved = jax.lax.dynamic_update_slice_in_dim(
      leaf, block, task * top_k, axis=axis
    )
    return jnp.where(fits, moved, leaf)

  pool = dict(params["prompt_pool"])
  if prompts:
    prefix = pool["prompt"].ndim == 6
    pool["prompt"] = copy(pool["prompt"], axis=2 if prefix else 1)
  if keys:
    pool["key"] = copy(pool["key"], axis=0)
  return {**params, "prompt_pool": pool}
