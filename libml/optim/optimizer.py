"""Builds the optimizer of a run from the settings of its parameter groups.

A group with settings None is frozen. A step is always `tx.update(grads,
opt_state, params, epoch=..., **extra)`: a transform that depends on the method,
such as a projection, takes its arrays as extra arguments.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import optax

from libml import registry
from libml import trees
from libml.optim import group_lasso
from libml.optim import projection
from libml.optim import proximal
from libml.optim import schedules
from libml.optim import transforms as transforms_lib
from libml.optim.group_lasso import LassoGroups
from libml.optim.groups import Groups


def adam(
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  epsilon_hat: bool = False,
):
  """Returns Adam's direction (Kingma and Ba, 2015).

  Args:
    b1: Decay of the first moment.
    b2: Decay of the second moment.
    eps: Added to the square root of the second moment.
    epsilon_hat: Whether eps is added before the bias correction, as in
      LoRA-Sub-DRS.
  """
  if epsilon_hat:
    return projection.scale_by_adam_epsilon_hat(b1, b2, eps)
  return optax.scale_by_adam(b1, b2, eps)


def sgd(momentum: float = 0.9, nesterov: bool = True):
  """Returns the direction of SGD with (Nesterov) momentum."""
  return optax.trace(momentum, nesterov) if momentum else optax.identity()


OPTIMIZERS = {"adam": adam, "sgd": sgd}

# Complete steps that also shrink the method's lasso groups, exactly to zero.
PROXIMAL = {
  "proximal_adam": proximal.proximal_group_lasso,
  "proximal_sgd": proximal.proximal_group_lasso_sgd,
}

# Values of a group's `project`: what the method's factors multiply.
_PROJECTED = (None, "update", "gradient")

# Settings of a parameter group that must lie below 1.
_BELOW_ONE = ("b1", "b2", "momentum")


def group_transform(
  *,
  name: str,
  lr: float,
  epochs: float,
  schedule: str = "constant",
  warmup_epochs: float = 0.0,
  min_lr: float = 0.0,
  weight_decay: float = 0.0,
  normalize_columns: bool = False,
  l2: float = 0.0,
  project: str | None = None,
  lasso: LassoGroups | None = None,
  transforms: Sequence[optax.GradientTransformation] = (),
  **options,
) -> optax.GradientTransformationExtraArgs:
  """Returns the transform of one parameter group.

  Args:
    name: Key of OPTIMIZERS or PROXIMAL.
    lr: Peak learning rate.
    epochs: Length of a stage, for the schedule.
    schedule: Key of schedules.SCHEDULES.
    warmup_epochs: See schedules.build.
    min_lr: See schedules.build.
    weight_decay: Decoupled decay: lr * weight_decay * theta per step.
    normalize_columns: Whether matrices keep columns of length 1.
    l2: Coupled decay: l2 * theta is added to the gradient.
    project: What the method's factors (extra arguments `left` and `right`)
      multiply: "update", "gradient", or None (nothing).
    lasso: The method's lasso groups; an optimizer in PROXIMAL needs them.
    transforms: The method's transforms, at the end of the chain. An optimizer
      in PROXIMAL ignores them, because its step must be the last transform.
    **options: Options of the optimizer, such as b1 or momentum.

  Raises:
    ValueError: `name`, `schedule`, `project` or an option is unknown, or an
      optimizer in PROXIMAL has options that would change its step, or no
      lasso groups.
  """
  if project not in _PROJECTED:
    raise ValueError(f"project={project!r} must be one of {_PROJECTED}.")
  rate = schedules.build(
    schedule,
    lr=lr,
    epochs=epochs,
    warmup_epochs=warmup_epochs,
    min_lr=min_lr,
  )
  if name in PROXIMAL:
    if lasso is None or project or normalize_columns or l2:
      raise ValueError(
        f"The optimizer {name!r} needs a method with lasso groups, and the "
        "settings project=None, normalize_columns=False and l2=0; set these, "
        f"or set name to one of {sorted(OPTIMIZERS)}."
      )
    return _proximal(name, rate, lasso, weight_decay, **options)
  chain = [optax.add_decayed_weights(l2)] if l2 else []
  if project == "gradient":
    chain.append(projection.project_updates())
  chain.append(registry.build(OPTIMIZERS, "optimizer", name, **options))
  if weight_decay:
    chain.append(optax.add_decayed_weights(weight_decay))
  chain.append(transforms_lib.scale_by_rate(rate))
  if normalize_columns:
    chain.append(transforms_lib.unit_columns())
  if project == "update":
    chain.append(projection.project_updates())
  return optax.chain(*chain, *transforms)


def _proximal(
  name: str,
  rate: schedules.Schedule,
  lasso: LassoGroups,
  weight_decay: float,
  **options: Any,
) -> optax.GradientTransformationExtraArgs:
  """Returns an optimizer in PROXIMAL; the method gives alpha at each step."""
  if weight_decay:
    options["weight_decay"] = weight_decay
  return registry.build(
    PROXIMAL,
    "optimizer",
    name,
    learning_rate=rate,
    alpha=0.0,
    groups=lasso,
    clock="epoch",
    **options,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """The optimizer of a run.

  Attributes:
    tx: The whole optax transform.
    groups: Its parameter groups.
    projected: Names of the parameter groups that have a `project`.
    proximal: Names of the parameter groups with an optimizer in PROXIMAL.
    lasso: The method's lasso groups.
  """

  tx: optax.GradientTransformationExtraArgs
  groups: Groups
  projected: frozenset[str] = frozenset()
  proximal: frozenset[str] = frozenset()
  lasso: LassoGroups | None = None

  def check(self, extra: Mapping[str, Any], params: Any) -> None:
    """Checks that the parameter groups fit the parameters and the method.

    Args:
      extra: The method's arrays for the transforms.
      params: All parameters, including the method's own.

    Raises:
      ValueError: A trained group has no parameter; the method has factors for a
        parameter whose group has no `project`, or none although a group has
        one; or the method has a weight of the group lasso and no group has an
        optimizer in PROXIMAL, or the reverse.
    """
    self.groups.check(params)
    labels = trees.flatten(self.groups.labels(params))
    self._check_proximal("alpha" in extra, params, labels)
    self._check_projected(extra, labels)

  def _check_proximal(
    self, weighed: bool, params: Any, labels: Mapping[str, str]
  ) -> None:
    """Checks that whole lasso groups get a proximal step, if any does."""
    if weighed and not self.proximal:
      raise ValueError(
        "The method shrinks its lasso groups by a proximal step, which none of "
        f"the parameter groups {[n for n, _ in self.groups.patterns]} takes; "
        f"set optimizer.GROUP.name to one of {sorted(PROXIMAL)}, or set the "
        "method's option that adds the penalty to its loss instead."
      )
    if self.proximal and not weighed:
      raise ValueError(
        f"The parameter groups {sorted(self.proximal)} take a proximal step, "
        "but the method gives no weight for it, so nothing would be shrunk; "
        f"set optimizer.GROUP.name to one of {sorted(OPTIMIZERS)}, or set the "
        "method's option that leaves the penalty to the optimizer."
      )
    if self.lasso is None or not self.proximal:
      return
    for group, members in group_lasso.members(params, self.lasso).items():
      where = {labels[name] for name in members}
      if len(where) > 1 or not where <= self.proximal:
        raise ValueError(
          f"The parameters of the lasso group {group!r} are shrunk together, "
          f"but are in the parameter groups {sorted(where)}; put them into one "
          f"group with one of the optimizers {sorted(PROXIMAL)}."
        )

  def _check_projected(
    self, extra: Mapping[str, Any], labels: Mapping[str, str]
  ) -> None:
    """Checks that groups have a `project` where the method has factors."""
    names = {
      name
      for side in ("left", "right")
      for name in trees.flatten(extra.get(side))
    }
    lost = sorted(n for n in names if labels.get(n) not in self.projected)
    if lost:
      raise ValueError(
        f"The method projects the updates of {len(lost)} parameters, such as "
        f"{lost[0]!r} of the parameter group {labels.get(lost[0])!r}, which "
        "has no project; set it to 'update' (or 'gradient') there."
      )
    if self.projected and not names:
      raise ValueError(
        f"The parameter groups {sorted(self.projected)} have a project, but "
        "the method projects nothing; set project=None."
      )


def build(
  *,
  groups: Sequence[tuple[str, str]],
  epochs: float,
  batch_size: int = 1,
  lr_batch_size: int | None = None,
  clip_norm: float | None = None,
  clip_scope: str = "trainable",
  l2: float = 0.0,
  lasso: LassoGroups | None = None,
  transforms: Sequence[optax.GradientTransformation] = (),
  **settings: Mapping[str, Any] | None,
) -> Optimizer:
  """Builds the optimizer of a run.

  Args:
    groups: Parameter groups: ordered pairs (name, pattern).
    epochs: Length of a stage.
    batch_size: Over all devices.
    lr_batch_size: The batch size for which lr and min_lr are given: they are
      multiplied by batch_size / lr_batch_size (256 in L2P). None: they are not.
    clip_norm: Largest norm of the gradient; None: no clipping.
    clip_scope: Gradients that the norm covers: "trainable", or "all" as in
      L2P's code, which needs the gradients of frozen weights, too.
    l2: Weight of 0.5 * sum of squares over all leaves of two dimensions or
      more; its gradient is added before clipping (L2P's decay in the loss).
    lasso: The method's lasso groups.
    transforms: The method's transforms, at the end of every trained group's
      chain.
    **settings: For each parameter group a dict of arguments of
      `group_transform`, or None: frozen.

  Raises:
    ValueError: A group has no settings, there are settings for no group, an
      option or clip_scope is unknown, or a number is negative or not finite.
  """
  if clip_scope not in ("trainable", "all"):
    raise ValueError(f"clip_scope={clip_scope!r} must be 'trainable' or 'all'.")
  if clip_norm is not None and not clip_norm > 0:  # NaN is not above 0 either
    raise ValueError(
      f"optimizer.clip_norm={clip_norm} must be above 0; None or inf clip "
      "nothing."
    )
  if lr_batch_size is not None and lr_batch_size < 1:
    raise ValueError(
      f"optimizer.lr_batch_size={lr_batch_size} must be at least 1, or None: "
      "learning rates are not scaled."
    )
  _check_groups(groups)
  lr_scale = batch_size / lr_batch_size if lr_batch_size else 1.0
  _check_number("l2", l2)
  _check_settings([name for name, _ in groups], settings)
  frozen = frozenset(n for n, options in settings.items() if options is None)
  parts = Groups(tuple((name, pattern) for name, pattern in groups), frozen)
  clip: Any = transforms_lib.clip_by_global_norm(clip_norm)
  if clip_scope == "trainable":
    # Without the mask, the clip would read the frozen weights' gradients, and
    # XLA would have to compute them.
    clip = optax.masked(clip, parts.trainable)
  shared = {"epochs": epochs, "lasso": lasso, "transforms": transforms}
  by_group: dict[Any, optax.GradientTransformation] = {
    name: _transform(name, settings[name], lr_scale, **shared)
    for name, _ in groups
  }
  chain = [clip, optax.partition(by_group, parts.labels)]
  if l2:
    matrices = functools.partial(jax.tree.map, lambda p: p.ndim > 1)
    chain = [optax.add_decayed_weights(l2, mask=matrices), *chain]
  trained = {name: settings[name] or {} for name in parts.trained}
  return Optimizer(
    tx=optax.chain(*chain),
    groups=parts,
    projected=frozenset(n for n, o in trained.items() if o.get("project")),
    proximal=frozenset(n for n, o in trained.items() if o["name"] in PROXIMAL),
    lasso=lasso,
  )


def _check_groups(groups: Any) -> None:
  """Raises ValueError unless these are pairs (name, pattern)."""
  pairs = isinstance(groups, list | tuple) and all(
    isinstance(pair, list | tuple)
    and len(pair) == 2
    and all(isinstance(word, str) for word in pair)
    for pair in groups
  )
  if not pairs:
    raise ValueError(
      f"optimizer.groups={groups!r} must be pairs (name, pattern), such as "
      "(('prompt', 'prompt_pool.*'), ('rest', '.*'))."
    )
  for name, pattern in groups:
    try:
      re.compile(pattern)
    except re.error as error:
      raise ValueError(
        f"optimizer.groups: the pattern {pattern!r} of {name!r} must be a "
        f"regular expression: {error}."
      ) from None


def _check_settings(names: Sequence[str], settings: Mapping[str, Any]) -> None:
  """Checks that parameter groups and settings have the same names."""
  for name in [*names, *settings]:
    if name not in settings:
      raise ValueError(
        f"The parameter group {name!r} has no settings; set optimizer.{name} "
        "to a dict, or to None to freeze it."
      )
    if name not in names:
      raise ValueError(
        f"The optimizer has settings for {name!r}, which is no parameter "
        f"group. {registry.nearest(name, names)}"
      )
    if not isinstance(settings[name], Mapping | None):
      raise ValueError(
        f"optimizer.{name}={settings[name]!r} must be a dict of settings, or "
        "None to freeze the group."
      )


def _check_number(name: str, value: Any) -> None:
  """Raises ValueError unless a setting is a finite number of at least 0."""
  number = isinstance(value, int | float) and not isinstance(value, bool)
  if not (number and math.isfinite(value) and value >= 0):
    raise ValueError(
      f"optimizer.{name}={value!r} must be a finite number of at least 0."
    )


def _transform(
  group: str,
  options: Mapping[str, Any] | None,
  lr_scale: float,
  **shared: Any,
) -> optax.GradientTransformation:
  """Returns the transform of a parameter group, with scaled learning rates.

  Raises:
    ValueError: As `group_transform`; the message names the group.
  """
  if options is None:
    return optax.set_to_zero()
  settled: dict[str, Any] = {"min_lr": 0.0, **options}
  if "lr" not in settled:
    raise ValueError(
      f"The parameter group {group!r} has no learning rate; set "
      f"optimizer.{group}.lr."
    )
  for name, value in settled.items():
    if name in ("lr", "min_lr") or isinstance(value, float):
      _check_number(f"{group}.{name}", value)
    if name in _BELOW_ONE and value >= 1:
      raise ValueError(f"optimizer.{group}.{name}={value} must be below 1.")
  for rate in ("lr", "min_lr"):
    settled[rate] *= lr_scale
  try:
    return group_transform(**{**settled, **shared})
  except ValueError as error:
    raise ValueError(f"optimizer.{group}: {error}") from error
