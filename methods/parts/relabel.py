"""Wrong labels for images that are to be forgotten, drawn inside the step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# The released code draws the shift of a label from 1 to 100.
_SHIFTS = 100


def uniform(
  rng: jax.Array, label: jax.Array, forget: jax.Array, retain: jax.Array
) -> jax.Array:
  """Returns labels drawn uniformly from the classes to retain, int32 [B].

  Args:
    rng: Key.
    label: int32 [B], of classes to forget.
    forget: bool [C].
    retain: bool [C], at least one.
  """
  del forget
  choices = jnp.where(retain, 0.0, -jnp.inf)
  return jax.random.categorical(rng, choices, shape=label.shape).astype(
    label.dtype
  )


def shifted(
  rng: jax.Array, label: jax.Array, forget: jax.Array, retain: jax.Array
) -> jax.Array:
  """Returns the released GS-LoRA code's wrong labels, int32 [B].

  With P classes to forget and u drawn from 1 to 100 they are (y + u) mod P, or
  (y + 1) mod P where that equals y. So they are ids 0 to P - 1, whether these
  classes are to be retained or forgotten. With P = 1 all labels are 0, also
  those of class 0.

  Args:
    rng: Key.
    label: y, int32 [B], of classes to forget.
    forget: bool [C].
    retain: Not read.
  """
  del retain
  size = jnp.sum(forget, dtype=label.dtype)
  shift = jax.random.randint(rng, label.shape, 1, _SHIFTS + 1, label.dtype)
  return shift_label(label, shift, size)


def shift_label(
  label: jax.Array, shift: jax.Array, size: jax.Array
) -> jax.Array:
  """Returns (label + shift) mod size, or (label + 1) mod size if that is label.

  Args:
    label: int32 [B].
    shift: int32 [B], 1 or more.
    size: int32[], P.
  """
  moved = (label + shift) % size
  return jnp.where(moved == label, (label + 1) % size, moved)


# Name in a config -> (rng, label, forget, retain) -> label.
RELABELS: dict[str, Callable[..., Any]] = {
  "kept": uniform,
  "shifted": shifted,
}
