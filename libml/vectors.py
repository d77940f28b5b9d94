"""Scales vectors to length 1."""

import jax
import jax.numpy as jnp


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
  """Scales x to Euclidean length 1 along an axis; zero vectors stay zero."""
  # The floor keeps the gradient of the root finite at zero.
  square = jnp.sum(x**2, axis=axis, keepdims=True)
  return x / jnp.sqrt(jnp.maximum(square, 1e-24))
