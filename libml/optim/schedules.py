"""Learning rates as functions of the epochs done in a stage."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from libml import registry

Schedule = Callable[[jax.Array], jax.Array]


def constant(epoch: jax.Array, length: float) -> jax.Array:
  """Stays at 1."""
  del length
  return jnp.ones_like(epoch)


def cosine(epoch: jax.Array, length: float) -> jax.Array:
  """Falls as half a cosine from 1 to 0, and stays there."""
  return 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(epoch / length, 0.0, 1.0)))


def linear(epoch: jax.Array, length: float) -> jax.Array:
  """Falls in a line from 1 to 0, and stays there."""
  return 1 - jnp.clip(epoch / length, 0.0, 1.0)


def quarter_cosine(epoch: jax.Array, length: float) -> jax.Array:
  """Falls as a cosine from 1 to nearly 0, in steps, one an epoch.

  Epoch e = 0, 1, ... of K has cos(99 pi e / (200 (K - 1))), so the last has
  1.57 % (LoRA-Sub-DRS, as meant). Past the end it would be negative.
  """
  return _quarter(_begun(epoch) - 1, length)


def late_quarter_cosine(epoch: jax.Array, length: float) -> jax.Array:
  """Is quarter_cosine one epoch late: the first two epochs are both at 1.

  So LoRA-Sub-DRS's code has it: cos(99 pi max(e - 1, 0) / (200 (K - 1))).
  """
  return _quarter(_begun(epoch) - 2, length)


def _begun(epoch: jax.Array) -> jax.Array:
  # XLA may divide by a reciprocal: 21 steps of 7 are 3.0000002 epochs.
  return jnp.ceil(epoch * (1 - 1e-6))


def _quarter(number: jax.Array, length: float) -> jax.Array:
  angle = 99 * jnp.pi / (200 * max(length - 1, 1))
  return jnp.cos(angle * jnp.maximum(number, 0))


def _floored(decay: Callable[[jax.Array, float], jax.Array]) -> Any:
  """Returns the builder of a decay that starts after the warm-up.

  rate(e) = max(lr * decay((e - w) / (E - w)), min_lr) for e >= w; below, lr *
  e / w, without the floor (L2P's schedule, which starts anew at each task;
  unlike the original it does not rise again past its end).
  """

  def build(lr: float, epochs: float, warmup: float, min_lr: float) -> Schedule:
    def rate(epoch: jax.Array) -> jax.Array:
      value = lr * decay(epoch - warmup, epochs - warmup)
      floored = jnp.maximum(value, min_lr)
      if not warmup:
        return floored
      warm = epoch / warmup
      return jnp.where(warm < 1, value * warm, floored)

    return rate

  return build


# Where timm's warm-up starts.
_WARMUP_LR = 1e-6


def timm_cosine(
  lr: float, epochs: float, warmup: float, min_lr: float
) -> Schedule:
  """Returns timm's cosine, which moves once an epoch e = 0, 1, ... (GS-LoRA).

  min_lr + (lr - min_lr) (1 + cos(pi e / E)) / 2, from e = E on min_lr. A
  warm-up 1e-6 + e (lr - 1e-6) / w takes the place of the first w epochs, so
  that the cosine begins at its own position there and not at lr.
  """

  def rate(epoch: jax.Array) -> jax.Array:
    e = jnp.maximum(_begun(epoch) - 1, 0)
    # (1 + cos x) / 2, without the difference of near numbers at the end.
    left = jnp.clip((epochs - e) / epochs, 0.0, 1.0)
    half = jnp.sin(left * (jnp.pi / 2)) ** 2
    value = min_lr + (lr - min_lr) * half
    if not warmup:
      return value
    warm = _WARMUP_LR + e * (lr - _WARMUP_LR) / warmup
    return jnp.where(e < warmup, warm, value)

  return rate


def late_drop(
  lr: float, epochs: float, warmup: float, min_lr: float
) -> Schedule:
  """Returns lr, and min_lr in the last three tenths of the epochs (SCRUB)."""
  if warmup:
    raise ValueError(
      f"late_drop has no warm-up; set warmup_epochs={warmup} to 0."
    )

  def rate(epoch: jax.Array) -> jax.Array:
    late = _begun(epoch) - 1 >= 0.7 * epochs - 1e-6
    return jnp.where(late, min_lr, lr)

  return rate


# Name -> builder from (peak rate, epochs of a stage, of the warm-up, lowest).
SCHEDULES: dict[str, Callable[[float, float, float, float], Schedule]] = {
  "constant": _floored(constant),
  "cosine": _floored(cosine),
  "linear": _floored(linear),
  "quarter_cosine": _floored(quarter_cosine),
  "late_quarter_cosine": _floored(late_quarter_cosine),
  "timm_cosine": timm_cosine,
  "late_drop": late_drop,
}


def build(
  name: str,
  *,
  lr: float,
  epochs: float,
  warmup_epochs: float = 0.0,
  min_lr: float = 0.0,
) -> Schedule:
  """Returns the learning rate as a function of the epochs done, a float32[].

  Args:
    name: Row of SCHEDULES.
    lr: Peak rate.
    epochs: Length E of a stage.
    warmup_epochs: Length w of the linear warm-up.
    min_lr: Floor after the warm-up.

  Raises:
    ValueError: An unknown name, or a warm-up not shorter than the stage.
  """
  if epochs <= 0:
    raise ValueError(f"epochs={epochs} must be above 0.")
  if name not in SCHEDULES:
    raise ValueError(
      f"Unknown schedule {name!r}. {registry.nearest(name, SCHEDULES)}"
    )
  if not 0 <= warmup_epochs < epochs:
    raise ValueError(
      f"warmup_epochs={warmup_epochs} must be at least 0 and below the "
      f"{epochs} epochs of a stage."
    )
  rate = SCHEDULES[name](lr, epochs, warmup_epochs, min_lr)
  return lambda epoch: rate(jnp.asarray(epoch, float))
