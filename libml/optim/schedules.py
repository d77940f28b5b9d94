"""Learning rates as functions of the number of epochs done in a stage.

A decay is a function of epoch, a float[], and of the stage's length in epochs;
it returns the factor of the peak learning rate.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from libml import registry

Schedule = Callable[[jax.Array], jax.Array]


def constant(epoch: jax.Array, length: float) -> jax.Array:
  """Is 1 always."""
  del length
  return jnp.ones_like(epoch)


def cosine(epoch: jax.Array, length: float) -> jax.Array:
  """Falls as half a cosine from 1 to 0, and stays there."""
  return 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(epoch / length, 0.0, 1.0)))


def linear(epoch: jax.Array, length: float) -> jax.Array:
  """Falls linearly from 1 to 0, and stays there."""
  return 1 - jnp.clip(epoch / length, 0.0, 1.0)


def quarter_cosine(epoch: jax.Array, length: float) -> jax.Array:
  """Falls as a quarter of a cosine from 1 to 0.0157, in one step per epoch.

  In epoch e = 0, 1, ... of K it is cos(99 pi e / (200 (K - 1))), which
  LoRA-Sub-DRS intends. Beyond the stage's end it would be negative.
  """
  return _quarter(_begun(epoch) - 1, length)


def late_quarter_cosine(epoch: jax.Array, length: float) -> jax.Array:
  """Is quarter_cosine one epoch later, so that it is 1 in the first two.

  It is cos(99 pi max(e - 1, 0) / (200 (K - 1))), as in LoRA-Sub-DRS's code.
  """
  return _quarter(_begun(epoch) - 2, length)


def _begun(epoch: jax.Array) -> jax.Array:
  # XLA may multiply by a reciprocal: 21 steps of 7 are 3.0000002 epochs.
  return jnp.ceil(epoch * (1 - 1e-6))


def _quarter(number: jax.Array, length: float) -> jax.Array:
  angle = 99 * jnp.pi / (200 * max(length - 1, 1))
  return jnp.cos(angle * jnp.maximum(number, 0))


def _floored(decay: Callable[[jax.Array, float], jax.Array]) -> Any:
  """Returns the builder of a schedule: linear warm-up, then a decay.

  With E epochs and w of warm-up, rate(e) = lr * e / w for e < w, and
  max(lr * decay(e - w, E - w), min_lr) from w on. It is L2P's schedule, which
  starts again at each task; unlike the original it does not rise again after
  the stage's end.
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


# Learning rate at the start of timm's warm-up.
_WARMUP_LR = 1e-6


def timm_cosine(
  lr: float, epochs: float, warmup: float, min_lr: float
) -> Schedule:
  """Returns timm's cosine, in one step per epoch e = 0, 1, ... (GS-LoRA).

  The rate is min_lr + (lr - min_lr) (1 + cos(pi e / E)) / 2, and min_lr from
  e = E on. In the first w epochs it is 1e-6 + e (lr - 1e-6) / w instead, so
  that the cosine starts at epoch w, already below lr.
  """

  def rate(epoch: jax.Array) -> jax.Array:
    e = jnp.maximum(_begun(epoch) - 1, 0)
    # (1 + cos x) / 2 = sin((pi - x) / 2)^2, without cancellation near x = pi.
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
  """Returns lr, and min_lr in the last three tenths of the epochs (SCRUB).

  Raises:
    ValueError: There is a warm-up.
  """
  if warmup:
    raise ValueError(
      f"The schedule late_drop has no warm-up, but warmup_epochs={warmup}; set "
      "it to 0."
    )

  def rate(epoch: jax.Array) -> jax.Array:
    late = _begun(epoch) - 1 >= 0.7 * epochs - 1e-6
    return jnp.where(late, min_lr, lr)

  return rate


# Name -> builder of a schedule from (lr, epochs, warmup_epochs, min_lr).
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
  """Returns the learning rate, float32[], as a function of the epochs done.

  Args:
    name: Key of SCHEDULES.
    lr: Peak rate.
    epochs: Length E of a stage.
    warmup_epochs: Length w of the linear warm-up.
    min_lr: Lowest rate after the warm-up.

  Raises:
    ValueError: The name is unknown, `epochs` is not above 0, or the warm-up is
      not shorter than the stage.
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
