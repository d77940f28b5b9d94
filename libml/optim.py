"""Optimizers: parameter groups by name, schedules in epochs, None = frozen.

A step is always `tx.update(grads, opt_state, params, epoch=..., **extra)`;
whatever bends it is a transform here that takes arrays as extra arguments.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from libml import paths
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


SCHEDULES = {"constant": constant, "cosine": cosine, "linear": linear}


def schedule(
  name: str,
  *,
  lr: float,
  epochs: float,
  warmup_epochs: float = 0.0,
  min_lr: float = 0.0,
) -> Schedule:
  """Returns the learning rate as a function of the epochs done, a float32[].

  rate(e) = max(lr * decay((e - w) / (E - w)), min_lr) for e >= w; below, lr *
  e / w, without the floor (L2P's schedule, which starts anew at each task;
  unlike the original it does not rise again past its end).

  Args:
    name: "constant", "cosine" or "linear".
    lr: Peak rate.
    epochs: Length E of a stage.
    warmup_epochs: Length w of the linear warm-up.
    min_lr: Floor after the warm-up.

  Raises:
    ValueError: An unknown name, or a warm-up not shorter than the stage.
  """
  if name not in SCHEDULES:
    raise ValueError(
      f"Unknown schedule {name!r}. {registry.nearest(name, SCHEDULES)}"
    )
  if not 0 <= warmup_epochs < epochs:
    raise ValueError(
      f"warmup_epochs={warmup_epochs} must be at least 0 and below the "
      f"{epochs} epochs of a stage."
    )

  def rate(epoch: jax.Array) -> jax.Array:
    epoch = jnp.asarray(epoch, jnp.float32)
    value = lr * SCHEDULES[name](epoch - warmup_epochs, epochs - warmup_epochs)
    floored = jnp.maximum(value, min_lr)
    if not warmup_epochs:
      return floored
    warm = epoch / warmup_epochs
    return jnp.where(warm < 1, value * warm, floored)

  return rate


class RateState(NamedTuple):
  """The rate of the last step, for the log."""

  learning_rate: jax.Array


def scale_by_rate(rate: Schedule) -> optax.GradientTransformationExtraArgs:
  """Multiplies updates by -rate(epoch); `epoch` is an extra argument."""

  def init(params):
    del params
    return RateState(jnp.zeros((), jnp.float32))

  def update(updates, state, params=None, *, epoch, **extra):
    del state, params, extra
    lr = rate(epoch)
    scaled = jax.tree.map(lambda u: (-lr * u).astype(u.dtype), updates)
    return scaled, RateState(lr)

  return optax.GradientTransformationExtraArgs(init, update)


class ClipState(NamedTuple):
  """The gradient's norm before the last clipping, for the log."""

  l2_grads: jax.Array


def clip_by_global_norm(
  max_norm: float | None,
) -> optax.GradientTransformationExtraArgs:
  """Scales updates by min(1, max_norm / (norm + 1e-6)), and keeps the norm.

  None only measures. Unlike optax's it has the 1e-6 of the L2P code, and
  remembers what it saw.
  """

  def init(params):
    del params
    return ClipState(jnp.zeros((), jnp.float32))

  def update(updates, state, params=None, **extra):
    del state, params, extra
    norm = optax.tree.norm(updates)
    if max_norm is not None:
      scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))
      updates = jax.tree.map(lambda u: (scale * u).astype(u.dtype), updates)
    return updates, ClipState(norm)

  return optax.GradientTransformationExtraArgs(init, update)


def unit_columns() -> optax.GradientTransformationExtraArgs:
  """Ends a step with each matrix's columns at length 1 (weight_norm in L2P)."""

  def project(update, param):
    if param.ndim != 2:
      return update
    moved = param + update
    norm = optax.safe_norm(moved, 0.0, axis=0, keepdims=True)
    return moved / (norm + 1e-10) - param

  def update(updates, state, params=None, **extra):
    del extra
    return jax.tree.map(project, updates, params), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8):
  """Returns Adam's direction (Kingma and Ba, 2015)."""
  return optax.scale_by_adam(b1, b2, eps)


def sgd(momentum: float = 0.9, nesterov: bool = True):
  """Returns the direction of SGD with (Nesterov) momentum."""
  return optax.trace(momentum, nesterov) if momentum else optax.identity()


OPTIMIZERS = {"adam": adam, "sgd": sgd}


def group_transform(
  *,
  name: str,
  lr: float,
  epochs: float,
  schedule_name: str = "constant",
  warmup_epochs: float = 0.0,
  min_lr: float = 0.0,
  weight_decay: float = 0.0,
  normalize_columns: bool = False,
  **options,
) -> optax.GradientTransformationExtraArgs:
  """Returns the transform of one parameter group.

  Args:
    name: Row of OPTIMIZERS.
    lr: Peak learning rate.
    epochs: Length of a stage, for the schedule.
    schedule_name: Row of SCHEDULES.
    warmup_epochs: See `schedule`.
    min_lr: See `schedule`.
    weight_decay: Decoupled decay, lr * weight_decay * theta a step.
    normalize_columns: Whether matrices keep columns of length 1.
    **options: Of the optimizer, such as b1 or momentum.
  """
  rate = schedule(
    schedule_name,
    lr=lr,
    epochs=epochs,
    warmup_epochs=warmup_epochs,
    min_lr=min_lr,
  )
  chain = [registry.build(OPTIMIZERS, "optimizer", name, **options)]
  if weight_decay:
    chain.append(optax.add_decayed_weights(weight_decay))
  chain.append(scale_by_rate(rate))
  if normalize_columns:
    chain.append(unit_columns())
  return optax.chain(*chain)


@dataclasses.dataclass(frozen=True)
class Groups:
  """Named parts of a parameter tree: ordered (name, pattern), first match wins.

  Attributes:
    patterns: Regular expressions over whole leaf names.
    frozen: Names of the groups that are not trained.
  """

  patterns: tuple[tuple[str, str], ...]
  frozen: frozenset[str]

  def labels(self, params: Any) -> Any:
    """Returns the tree of group names.

    Raises:
      ValueError: A parameter that matches no group.
    """

    def label(name, leaf):
      del leaf
      for group, pattern in self.patterns:
        if re.fullmatch(pattern, name):
          return group
      raise ValueError(
        f"Parameter {name!r} matches none of the optimizer's groups "
        f"{self.patterns}; add a last group with the pattern '.*'."
      )

    return paths.map_named(label, params)

  def trainable(self, params: Any) -> Any:
    """Returns the tree of booleans: whether a leaf is trained."""
    return jax.tree.map(lambda g: g not in self.frozen, self.labels(params))


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """What turns gradients into a step.

  Attributes:
    tx: The whole transform.
    groups: Which parameters it trains.
  """

  tx: optax.GradientTransformationExtraArgs
  groups: Groups


def build(
  *,
  groups: Sequence[tuple[str, str]],
  epochs: float,
  lr_scale: float = 1.0,
  clip_norm: float | None = None,
  clip_scope: str = "trainable",
  l2: float = 0.0,
  **settings: Mapping[str, Any] | None,
) -> Optimizer:
  """Builds the optimizer of a run.

  Args:
    groups: Ordered (name, pattern).
    epochs: Length of a stage.
    lr_scale: Factor of every lr and min_lr (batch size / 256 in L2P).
    clip_norm: Largest norm of the gradient; None does not clip.
    clip_scope: Whose norm: "trainable", or "all" for parity with the L2P
      code, which counts frozen weights' gradients (and so computes them).
    l2: Weight of 0.5 * sum of squares over all leaves of two dimensions or
      more, added to the gradient before clipping (L2P's decay in the loss).
    **settings: For each group a dict for `group_transform`, or None: frozen.

  Raises:
    ValueError: A group without settings, settings without a group, an
      unknown option, or an unknown clip_scope.
  """
  names = [name for name, _ in groups]
  for name in [*names, *settings]:
    if name not in settings:
      raise ValueError(
        f"The optimizer's group {name!r} has no settings; give a dict, or "
        "None to freeze it."
      )
    if name not in names:
      raise ValueError(
        f"Optimizer settings for {name!r}, which is no group. "
        f"{registry.nearest(name, names)}"
      )
  if clip_scope not in ("trainable", "all"):
    raise ValueError(f"clip_scope={clip_scope!r} must be 'trainable' or 'all'.")
  frozen = frozenset(name for name in names if settings[name] is None)
  parts = Groups(tuple((name, pattern) for name, pattern in groups), frozen)

  def transform(options):
    if options is None:
      return optax.set_to_zero()
    options = {"schedule": "constant", **options}
    scaled = {"lr": options.pop("lr") * lr_scale, "epochs": epochs}
    if "min_lr" in options:
      scaled["min_lr"] = options.pop("min_lr") * lr_scale
    return group_transform(
      schedule_name=options.pop("schedule"), **scaled, **options
    )

  clip = clip_by_global_norm(clip_norm)
  if clip_scope == "trainable":
    # Outside the mask a clip reads, and so keeps alive, frozen gradients.
    clip = optax.masked(clip, parts.trainable)
  chain = [
    clip,
    optax.partition(
      {name: transform(settings[name]) for name in names}, parts.labels
    ),
  ]
  if l2:
    matrices = functools.partial(jax.tree.map, lambda p: p.ndim > 1)
    chain.insert(0, optax.add_decayed_weights(l2, mask=matrices))
  return Optimizer(optax.chain(*chain), parts)


def metrics(opt_state: Any) -> dict[str, jax.Array]:
  """Returns what the transforms remembered of a step, by name.

  The learning rates of several groups are told apart by the group's name.
  """
  found = {}
  for name, leaf in paths.flatten(opt_state).items():
    parts = name.split("/")
    if parts[-1] == "l2_grads":
      found["l2_grads"] = leaf
    elif parts[-1] == "learning_rate":
      group = parts[parts.index("inner_states") + 1]
      found[f"learning_rate/{group}"] = leaf
  return found
