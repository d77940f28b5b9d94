"""Vectors of length 1."""

import jax
import jax.numpy as jnp


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
  """Returns x with length 1 along an axis; a vector of zeros stays as it is."""
  # The floor keeps the gradient of the root finite at zero.
  square = jnp.sum(x**2, axis=axis, keepdims=True)
  return x / jnp.sqrt(jnp.maximum(square, 1e-24))
