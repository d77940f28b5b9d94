"""Transformer layers whose dense class and precision are fields."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from models import kernels

# Builds a dense layer from nn.DenseGeneral's arguments: the class itself, or a
# lora.Lora.
Dense = Callable[..., Callable[[jax.Array], jax.Array]]

ALL = slice(None)

# Name -> whether the GELU is approximated by tanh.
GELUS = {"tanh": True, "erf": False}


def uniform_init(fan_in: int) -> dict[str, Any]:
  """Returns initializers of kernel and bias, uniform in +-1 / sqrt(fan_in)."""

  def draw(rng, shape, dtype=jnp.float32):
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(rng, shape, dtype, -bound, bound)

  return {"kernel_init": draw, "bias_init": draw}


class LayerNorm(nn.Module):
  """Layer normalization over the last axis, in float32.

  Attributes:
    epsilon: Added to the variance.
    dtype: Type of the result.
    param_dtype: Type of the parameters.
  """

  epsilon: float = 1e-6
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps x [..., D] to [..., D]."""
    shape, ones, zeros = (
      x.shape[-1:],
      nn.initializers.ones,
      nn.initializers.zeros,
    )
    scale = self.param("scale", ones, shape, self.param_dtype)
    bias = self.param("bias", zeros, shape, self.param_dtype)
    return kernels.layer_norm(
      x, scale, bias, self.epsilon, jnp.dtype(self.dtype)
    )


class Attention(nn.Module):
  """Multi-head self-attention, with an optional key and value prefix.

  Prefix tuning: Li and Liang, "Prefix-Tuning", ACL 2021.

  Attributes:
    num_heads: H.
    head_dim: K, the width of a head; None: D / H, and H must divide D.
    dropout: Rate on the attention weights.
    scale: Factor of the scores before the softmax; None: 1 / sqrt(K).
    qkv_bias: Whether query, key and value have a bias.
    uniform: Whether the parameters start as in `uniform_init`.
    dtype: Compute type; the softmax is float32 in any case.
    param_dtype: Type of the parameters.
    dense: Class of the projections query, key, value and out.
  """

  num_heads: int
  head_dim: int | None = None
  dropout: float = 0.0
  scale: float | None = None
  qkv_bias: bool = True
  uniform: bool = False
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32
  dense: Dense = nn.DenseGeneral

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    prefix: jax.Array | None = None,
    *,
    rows: slice = ALL,
    train: bool = False,
  ) -> jax.Array:
    """Attends from each token to the prefix and all tokens.

    Args:
      x: [B, T, D] tokens.
      prefix: [2, B, L, H, K] keys and values, put before those of the tokens
        without projection or bias.
      rows: Tokens whose result is returned.
      train: Whether dropout is active.

    Returns:
      [B, T, D], or only the rows asked for; a prefix adds no rows.

    Raises:
      ValueError: If the prefix has another number or width of heads.
    """
    width = x.shape[-1]
    heads = (self.num_heads, self.head_dim or width // self.num_heads)

    def dense(features, fan_in, **options):
      init = {"kernel_init": nn.initializers.xavier_uniform()}
      return self.dense(
        features,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        dot_general=kernels.dot_general,
        **(uniform_init(fan_in) if self.uniform else init),
        **options,
      )

    query, key, value = (
      dense(heads, width, use_bias=self.qkv_bias, name=name)(tokens)
      for name, tokens in (("query", x[:, rows]), ("key", x), ("value", x))
    )  # [B, T, H, K]
    if prefix is not None:
      if prefix.shape[-2:] != heads:
        raise ValueError(
          f"The prefix has shape {prefix.shape}, which must end in {heads}, the"
          " number of heads and their width: build the prompts with the model's"
          " width and num_heads."
        )
      prefix = prefix.astype(key.dtype)
      key = jnp.concatenate([prefix[0], key], axis=1)  # [B, L + T, H, K]
      value = jnp.concatenate([prefix[1], value], axis=1)
    if self.dropout:
      weights = kernels.attention_weights(query, key, self.scale)
      weights = nn.Dropout(self.dropout)(weights, deterministic=not train)
      x = jnp.einsum("bhts,bshk->bthk", weights, value)
    else:
      x = kernels.attention(query, key, value, self.scale)
    return dense(width, math.prod(heads), axis=(-2, -1), name="out")(x)


class Mlp(nn.Module):
  """Two dense layers with a GELU between them.

  Attributes:
    hidden: Width of the first layer's output.
    dropout: Rate after each dense layer.
    gelu: "tanh" (official ViT) or "erf" (DeiT and timm).
    uniform: Whether the parameters start as in `uniform_init`.
    dtype: Compute type.
    param_dtype: Type of the parameters.
    dense: Class of both layers.
  """

  hidden: int
  dropout: float = 0.0
  gelu: str = "tanh"
  uniform: bool = False
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32
  dense: Dense = nn.DenseGeneral

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps x [B, T, D] to [B, T, D], token by token."""

    def dense(features, name, fan_in):
      init = {
        "kernel_init": nn.initializers.xavier_uniform(),
        "bias_init": nn.initializers.normal(1e-6),
      }
      return self.dense(
        features,
        name=name,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        dot_general=kernels.dot_general,
        **(uniform_init(fan_in) if self.uniform else init),
      )

    width = x.shape[-1]
    x = dense(self.hidden, "Dense_0", fan_in=width)(x)
    x = kernels.gelu(x, GELUS[self.gelu])
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x = dense(width, "Dense_1", fan_in=self.hidden)(x)
    return nn.Dropout(self.dropout)(x, deterministic=not train)


class EncoderBlock(nn.Module):
  """Pre-norm transformer block: attention, then MLP, each with a residual.

  Attributes:
    num_heads: H.
    head_dim: K, the width of a head; None: D / H, and H must divide D.
    mlp_dim: Hidden width of the MLP.
    dropout: Rate after the attention and in the MLP.
    attention_dropout: Rate on the attention weights.
    gelu: "tanh" or "erf".
    epsilon: Added to the variance in both norms.
    scale: Factor of the attention's scores; None: 1 / sqrt(K).
    qkv_bias: Whether query, key and value have a bias.
    uniform: Whether dense layers start as in `uniform_init`.
    dtype: Compute type.
    param_dtype: Type of the parameters.
    dense: Class of all dense layers.
  """

  num_heads: int
  mlp_dim: int
  head_dim: int | None = None
  dropout: float = 0.0
  attention_dropout: float = 0.0
  gelu: str = "tanh"
  epsilon: float = 1e-6
  scale: float | None = None
  qkv_bias: bool = True
  uniform: bool = False
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32
  dense: Dense = nn.DenseGeneral

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    prefix: jax.Array | None = None,
    *,
    rows: slice = ALL,
    train: bool = False,
  ) -> jax.Array:
    """Maps x [B, T, D] to [B, T, D]; prefix and rows as in Attention."""
    norm = functools.partial(
      LayerNorm,
      epsilon=self.epsilon,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    y = norm(name="LayerNorm_0")(x)
    y = Attention(
      num_heads=self.num_heads,
      head_dim=self.head_dim,
      dropout=self.attention_dropout,
      scale=self.scale,
      qkv_bias=self.qkv_bias,
      uniform=self.uniform,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      dense=self.dense,
      name="MultiHeadDotProductAttention_0",
    )(y, prefix, rows=rows, train=train)
    x = x[:, rows] + nn.Dropout(self.dropout)(y, deterministic=not train)
    y = norm(name="LayerNorm_1")(x)
    y = Mlp(
      hidden=self.mlp_dim,
      dropout=self.dropout,
      gelu=self.gelu,
      uniform=self.uniform,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      dense=self.dense,
      name="MlpBlock_0",
    )(y, train=train)
    return x + y
