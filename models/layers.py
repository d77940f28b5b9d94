"""Transformer layers whose dense class and precision are fields."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

# Builds a dense layer from nn.DenseGeneral's arguments: the class itself, or
# e.g. a partial of a low-rank adapted one.
Dense = Callable[..., Callable[[jax.Array], jax.Array]]

GELUS = {
  "tanh": functools.partial(nn.gelu, approximate=True),
  "erf": functools.partial(nn.gelu, approximate=False),
}


def layer_norm(name: str, param_dtype: DTypeLike) -> nn.LayerNorm:
  """Returns a LayerNorm (epsilon 1e-6) that computes in float32."""
  return nn.LayerNorm(
    epsilon=1e-6, dtype=jnp.float32, param_dtype=param_dtype, name=name
  )


class Attention(nn.Module):
  """Multi-head self-attention, with an optional key and value prefix.

  Prefix tuning: Li and Liang, "Prefix-Tuning", ACL 2021.

  Attributes:
    num_heads: H; must divide the width of the input.
    dropout: Rate on the attention weights.
    dtype: Compute type; the softmax is float32 whatever it is.
    param_dtype: Type of the parameters.
    dense: Class of the projections query, key, value and out.
  """

  num_heads: int
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32
  dense: Dense = nn.DenseGeneral

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    prefix: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Returns what each token gathers from all tokens.

    Args:
      x: [B, T, D] tokens.
      prefix: [2, B, L, H, K] keys and values put before those of the tokens,
        as they are: no projection, bias or scale touches them.
      train: Whether dropout is active.

    Returns:
      [B, T, D], as long as x with or without a prefix.
    """
    width = x.shape[-1]
    head = width // self.num_heads
    dense = functools.partial(
      self.dense,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      kernel_init=nn.initializers.xavier_uniform(),
    )
    query, key, value = (
      dense((self.num_heads, head), name=name)(x)
      for name in ("query", "key", "value")
    )  # [B, T, H, K]
    if prefix is not None:
      prefix = prefix.astype(key.dtype)
      key = jnp.concatenate([prefix[0], key], axis=1)  # [B, L + T, H, K]
      value = jnp.concatenate([prefix[1], value], axis=1)
    # Not the fused operator and no float32 output asked of the two products:
    # on CPU the first is slower, and the second can fail at run time in bf16.
    weights = jnp.einsum("bthk,bshk->bhts", query * head**-0.5, key)
    weights = nn.softmax(weights.astype(jnp.float32)).astype(value.dtype)
    weights = nn.Dropout(self.dropout)(weights, deterministic=not train)
    x = jnp.einsum("bhts,bshk->bthk", weights, value)
    return dense(width, axis=(-2, -1), name="out")(x)


class Mlp(nn.Module):
  """Two dense layers with a GELU between them.

  Attributes:
    hidden: Width of the layer between.
    dropout: Rate after each dense layer.
    gelu: "tanh" (official ViT) or "erf" (DeiT and timm).
    dtype: Compute type.
    param_dtype: Type of the parameters.
    dense: Class of both layers.
  """

  hidden: int
  dropout: float = 0.0
  gelu: str = "tanh"
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32
  dense: Dense = nn.DenseGeneral

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps x [B, T, D] to [B, T, D], token by token."""
    dense = functools.partial(
      self.dense,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      bias_init=nn.initializers.normal(1e-6),
    )
    width = x.shape[-1]
    x = GELUS[self.gelu](dense(self.hidden, name="Dense_0")(x))
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x = dense(width, name="Dense_1")(x)
    return nn.Dropout(self.dropout)(x, deterministic=not train)


class EncoderBlock(nn.Module):
  """Pre-norm transformer block: attention, then MLP, each with a residual.

  Attributes:
    num_heads: H; must divide the width of the input.
    mlp_dim: Hidden width of the MLP.
    dropout: Rate after the attention and in the MLP.
    attention_dropout: Rate on the attention weights.
    gelu: "tanh" or "erf".
    dtype: Compute type.
    param_dtype: Type of the parameters.
    dense: Class of all dense layers.
  """

  num_heads: int
  mlp_dim: int
  dropout: float = 0.0
  attention_dropout: float = 0.0
  gelu: str = "tanh"
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32
  dense: Dense = nn.DenseGeneral

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    prefix: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Maps x [B, T, D] to [B, T, D]; prefix as in Attention."""
    y = layer_norm("LayerNorm_0", self.param_dtype)(x).astype(self.dtype)
    y = Attention(
      num_heads=self.num_heads,
      dropout=self.attention_dropout,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      dense=self.dense,
      name="MultiHeadDotProductAttention_0",
    )(y, prefix, train=train)
    x = x + nn.Dropout(self.dropout)(y, deterministic=not train)
    y = layer_norm("LayerNorm_1", self.param_dtype)(x).astype(self.dtype)
    y = Mlp(
      hidden=self.mlp_dim,
      dropout=self.dropout,
      gelu=self.gelu,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      dense=self.dense,
      name="MlpBlock_0",
    )(y, train=train)
    return x + y
