"""Transformer layers whose dense class and precision are fields."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from models import kernels

# Builds a dense layer from nn.DenseGeneral's arguments: the class itself, or
# e.g. a partial of a low-rank adapted one.
Dense = Callable[..., Callable[[jax.Array], jax.Array]]

ALL = slice(None)

# Name -> whether the GELU is approximated by tanh.
GELUS = {"tanh": True, "erf": False}


class LayerNorm(nn.Module):
  """Layer normalization over the last axis, in float32.

  Attributes:
    epsilon: Added to the variance.
    dtype: Of the result.
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


class PatchEmbedding(nn.Module):
  """Linear map of square patches, with the parameters of a convolution.

  Attributes:
    width: D.
    patch_size: Side of a patch.
    dtype: Compute type.
    param_dtype: Type of the parameters.
  """

  width: int
  patch_size: int
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    """Maps image [B, S, S, 3] to [B, N, D], patches row by row."""
    side = self.patch_size
    batch, height, width, channels = image.shape
    rows, columns = height // side, width // side
    kernel = self.param(
      "kernel",
      nn.initializers.lecun_normal(),
      (side, side, channels, self.width),
      self.param_dtype,
    )
    bias = self.param(
      "bias", nn.initializers.zeros, (self.width,), self.param_dtype
    )
    patches = image.reshape(batch, rows, side, columns, side, channels)
    patches = patches.transpose(0, 1, 3, 2, 4, 5)
    patches = patches.reshape(batch, rows * columns, -1).astype(self.dtype)
    kernel = kernel.reshape(-1, self.width).astype(self.dtype)
    x = kernels.dot_general(patches, kernel, (((2,), (0,)), ((), ())))
    return x + bias.astype(self.dtype)[None, None]


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
    rows: slice = ALL,
    train: bool = False,
  ) -> jax.Array:
    """Returns what each token gathers from all tokens.

    Args:
      x: [B, T, D] tokens.
      prefix: [2, B, L, H, K] keys and values put before those of the tokens,
        as they are: no projection, bias or scale touches them.
      rows: Tokens whose result is wanted.
      train: Whether dropout is active.

    Returns:
      [B, T, D] or fewer rows: with a prefix no more than without.
    """
    width = x.shape[-1]
    head = width // self.num_heads
    dense = functools.partial(
      self.dense,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      dot_general=kernels.dot_general,
    )
    query, key, value = (
      dense((self.num_heads, head), name=name)(tokens)
      for name, tokens in (("query", x[:, rows]), ("key", x), ("value", x))
    )  # [B, T, H, K]
    if prefix is not None:
      prefix = prefix.astype(key.dtype)
      key = jnp.concatenate([prefix[0], key], axis=1)  # [B, L + T, H, K]
      value = jnp.concatenate([prefix[1], value], axis=1)
    if self.dropout:
      weights = kernels.attention_weights(query, key)
      weights = nn.Dropout(self.dropout)(weights, deterministic=not train)
      x = jnp.einsum("bhts,bshk->bthk", weights, value)
    else:
      x = kernels.attention(query, key, value)
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
      dot_general=kernels.dot_general,
    )
    width = x.shape[-1]
    x = kernels.gelu(dense(self.hidden, name="Dense_0")(x), GELUS[self.gelu])
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
    epsilon: Of both norms.
    dtype: Compute type.
    param_dtype: Type of the parameters.
    dense: Class of all dense layers.
  """

  num_heads: int
  mlp_dim: int
  dropout: float = 0.0
  attention_dropout: float = 0.0
  gelu: str = "tanh"
  epsilon: float = 1e-6
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
      dropout=self.attention_dropout,
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
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      dense=self.dense,
      name="MlpBlock_0",
    )(y, train=train)
    return x + y
