"""A hash of integers that gives the same result on every device."""

import jax
import numpy as np


def scramble(x: jax.Array) -> jax.Array:
  """Hashes each uint32 to a uint32, one to one (MurmurHash3's finalizer)."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
