"""Transformer operations with hand-written gradients.

The gradients decide which arrays are kept for the backward pass (few, because
allocating memory in each step takes time) and the type and layout of products.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

_GELU_SLOPE = math.sqrt(2 / math.pi)
_GELU_CUBIC = 0.044715


def _wide(x):
  # To float32; float64 stays as it is (tests enable it).
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def dot_general(
  lhs: jax.Array,
  rhs: jax.Array,
  dimension_numbers: Any,
  precision: Any = None,
  preferred_element_type: DTypeLike | None = None,
  **options: Any,
) -> jax.Array:
  """Multiplies like jax.lax.dot_general, but faster for bfloat16 on CPU.

  XLA's CPU backend multiplies bfloat16 fast only where the result is float32.
  So bfloat16 products of dense layers on CPU, lhs [..., K] and rhs [K, ...] (K
  may be several axes) without batch dimensions, are computed in float32 and
  rounded, forward and backward. All others call jax.lax.dot_general: a batched
  product with a float32 result compiles, but fails at run time.
  """
  (lhs_axes, rhs_axes), batch = dimension_numbers
  axes = tuple(int(axis) for axis in lhs_axes)
  if (
    jax.default_backend() == "cpu"
    and lhs.dtype == rhs.dtype == jnp.bfloat16
    and not any(len(dims) for dims in batch)
    and axes == tuple(range(lhs.ndim - len(axes), lhs.ndim))
    and tuple(rhs_axes) == tuple(range(len(axes)))
  ):
    return _dot(lhs, rhs, axes)
  return jax.lax.dot_general(
    lhs,
    rhs,
    dimension_numbers,
    precision=precision,
    preferred_element_type=preferred_element_type,
    **options,
  )


def _dot32(lhs, rhs, contract):
  return jax.lax.dot_general(
    lhs, rhs, (contract, ((), ())), preferred_element_type=jnp.float32
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dot(x, w, axes):
  return _dot32(x, w, (axes, tuple(range(len(axes))))).astype(x.dtype)


def _dot_forward(x, w, axes):
  return _dot(x, w, axes), (x, w)


def _dot_backward(axes, saved, g):
  x, w = saved
  lead = tuple(range(x.ndim - len(axes)))
  outputs = tuple(range(len(lead), g.ndim)), tuple(range(len(axes), w.ndim))
  dx = _dot32(g, w, outputs)
  # Keep x on the left; else XLA transposes the product to one it cannot run.
  dw = _dot32(x, g, (lead, lead))
  return dx.astype(x.dtype), dw.astype(w.dtype)


_dot.defvjp(_dot_forward, _dot_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: jax.Array, approximate: bool) -> jax.Array:
  """Gaussian error linear unit (Hendrycks and Gimpel, 2016).

  Computes in float32 and keeps only x for the backward pass.

  Args:
    x: Any shape.
    approximate: Whether by tanh instead of erf.

  Returns:
    The shape and type of x.
  """
  x32 = _wide(x)
  return (x32 * _gelu_gate(x32, approximate)).astype(x.dtype)


def _gelu_gate(x, approximate):
  if approximate:
    inner = _GELU_SLOPE * (x + _GELU_CUBIC * x**3)
    return 0.5 + 0.5 * jnp.tanh(inner)
  return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


def _gelu_forward(x, approximate):
  return gelu(x, approximate), x


def _gelu_backward(approximate, x, g):
  x32 = _wide(x)
  gate = _gelu_gate(x32, approximate)
  if approximate:
    inner = _GELU_SLOPE * (1 + 3 * _GELU_CUBIC * x32**2)
    slope = 2 * gate * (1 - gate) * inner
  else:
    slope = jnp.exp(-0.5 * x32**2) / math.sqrt(2 * math.pi)
  return ((_wide(g) * (gate + x32 * slope)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  epsilon: float,
  dtype: DTypeLike,
) -> jax.Array:
  """Layer normalization (Ba et al., 2016) over the last axis, in float32.

  Args:
    x: [..., D].
    scale: [D].
    bias: [D].
    epsilon: Added to the variance.
    dtype: Type of the result.

  Returns:
    [..., D].
  """
  return _layer_norm_forward(x, scale, bias, epsilon, dtype)[0]


def _row(vector, ndim):
  return _wide(vector).reshape((1,) * (ndim - 1) + (-1,))


def _layer_norm_forward(x, scale, bias, epsilon, dtype):
  x32 = _wide(x)
  mean = x32.mean(axis=-1, keepdims=True)
  square = jnp.mean(x32**2, axis=-1, keepdims=True)
  variance = jnp.maximum(square - mean**2, 0.0)
  inverse = jax.lax.rsqrt(variance + epsilon)
  y = (x32 - mean) * (inverse * _row(scale, x.ndim)) + _row(bias, x.ndim)
  return y.astype(dtype), (x, scale, bias, mean, inverse)


def _layer_norm_backward(epsilon, dtype, saved, g):
  del epsilon, dtype
  x, scale, bias, mean, inverse = saved
  g = _wide(g)
  unit = (_wide(x) - mean) * inverse
  scaled = g * _row(scale, x.ndim)
  along = jnp.mean(scaled * unit, axis=-1, keepdims=True)
  dx = inverse * (scaled - scaled.mean(axis=-1, keepdims=True) - unit * along)
  lead = tuple(range(x.ndim - 1))
  return (
    dx.astype(x.dtype),
    jnp.sum(g * unit, axis=lead).astype(scale.dtype),
    jnp.sum(g, axis=lead).astype(bias.dtype),
  )


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  scale: float | None = None,
) -> jax.Array:
  """Scaled dot-product attention (Vaswani et al., 2017).

  Args:
    query: [B, T, H, K].
    key: [B, S, H, K].
    value: [B, S, H, K].
    scale: Factor of the scores; None: 1 / sqrt(K).

  Returns:
    [B, T, H, K], of the type of query; the softmax is float32.
  """
  if jax.default_backend() == "cpu":
    return _attention(query, key, value, scale)
  weights = attention_weights(query, key, scale)
  return jnp.einsum("bhts,bshk->bthk", weights, value)


def attention_weights(
  query: jax.Array, key: jax.Array, scale: float | None = None
) -> jax.Array:
  """Returns the attention weights [B, H, T, S] of queries on keys."""
  scaled = query * _scale(query, scale)
  scores = jnp.einsum("bthk,bshk->bhts", scaled, key)
  weights = jax.nn.softmax(_wide(scores))
  return weights.astype(query.dtype)


def _scale(query, scale):
  return query.shape[-1] ** -0.5 if scale is None else scale


def _heads_first(x):
  # Make each head's matrix contiguous. Otherwise XLA transposes the factors
  # and the result of the second product.
  return _wide(x.transpose(0, 2, 1, 3))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention(query, key, value, scale):
  return _attention_forward(query, key, value, scale)[0]


def _attention_forward(query, key, value, scale):
  q, k, v = (_heads_first(x) for x in (query, key, value))
  scores = jnp.einsum("bhtk,bhsk->bhts", q * _scale(q, scale), k)
  weights = jax.nn.softmax(scores)
  out = jnp.einsum("bhts,bhsk->bhtk", weights, v)
  out = out.transpose(0, 2, 1, 3).astype(query.dtype)
  return out, (query, key, value, weights.astype(query.dtype))


def _attention_backward(scale, saved, g):
  query, key, value, weights = saved
  q, k, v, g = (_heads_first(x) for x in (query, key, value, g))
  scale = _scale(q, scale)
  weights = _wide(weights)
  dv = jnp.einsum("bhts,bhtk->bhsk", weights, g)
  dweights = jnp.einsum("bhtk,bhsk->bhts", g, v)
  along = jnp.sum(dweights * weights, axis=-1, keepdims=True)
  dscores = weights * (dweights - along)
  dq = jnp.einsum("bhts,bhsk->bhtk", dscores, k) * scale
  dk = jnp.einsum("bhts,bhtk->bhsk", dscores, q * scale)
  return tuple(
    d.transpose(0, 2, 1, 3).astype(x.dtype)
    for d, x in ((dq, query), (dk, key), (dv, value))
  )


_attention.defvjp(_attention_forward, _attention_backward)
