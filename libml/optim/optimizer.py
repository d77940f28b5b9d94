"""Optimizers: parameter groups by name, None = frozen.

A step is always `tx.update(grads, opt_state, params, epoch=..., **extra)`;
whatever bends it is a transform that takes arrays as extra arguments.
"""

import dataclasses
import functools
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
    eps: Added to the root of the second moment.
    epsilon_hat: Whether before the bias correction, as LoRA-Sub-DRS has it.
  """
  if epsilon_hat:
    return projection.scale_by_adam_epsilon_hat(b1, b2, eps)
  return optax.scale_by_adam(b1, b2, eps)


def sgd(momentum: float = 0.9, nesterov: bool = True):
  """Returns the direction of SGD with (Nesterov) momentum."""
  return optax.trace(momentum, nesterov) if momentum else optax.identity()


OPTIMIZERS = {"adam": adam, "sgd": sgd}

# Those that hold the whole step, and shrink the method's groups to zero.
PROXIMAL = {
  "proximal_adam": proximal.proximal_group_lasso,
  "proximal_sgd": proximal.proximal_group_lasso_sgd,
}

# What a group's `project` names: whether the transform ends or starts a chain.
_PROJECTED = (None, "update", "gradient")


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
    name: Row of OPTIMIZERS or PROXIMAL.
    lr: Peak learning rate.
    epochs: Length of a stage, for the schedule.
    schedule: Row of schedules.SCHEDULES.
    warmup_epochs: See schedules.build.
    min_lr: See schedules.build.
    weight_decay: Decoupled decay, lr * weight_decay * theta a step.
    normalize_columns: Whether matrices keep columns of length 1.
    l2: Coupled decay: l2 * theta is added to the gradient.
    project: What the method's factors (extra arguments `left` and `right`)
      multiply: the "update", the "gradient", or None: nothing.
    lasso: The method's groups, for a row of PROXIMAL.
    transforms: The method's, at the end of the chain; a row of PROXIMAL, whose
      step must be the last, takes none.
    **options: Of the optimizer, such as b1 or momentum.

  Raises:
    ValueError: An unknown row or option, another `project`, or a row of
      PROXIMAL beside options that would change its step, or without groups.
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
        f"The optimizer {name!r} takes a step of its own: set project=None, "
        "normalize_columns=False and l2=0, and a method with groups to shrink; "
        f"else take one of {sorted(OPTIMIZERS)}."
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
  """Returns a row of PROXIMAL; alpha comes from the method at each step."""
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
  """What turns gradients into a step.

  Attributes:
    tx: The whole transform.
    groups: Which parameters it trains.
    projected: Names of the groups that a method's factors multiply.
    proximal: Names of the groups whose step shrinks a method's groups.
    lasso: The method's groups.
  """

  tx: optax.GradientTransformationExtraArgs
  groups: Groups
  projected: frozenset[str] = frozenset()
  proximal: frozenset[str] = frozenset()
  lasso: LassoGroups | None = None

  def check(self, extra: Mapping[str, Any], params: Any) -> None:
    """Checks that the groups fit the parameters and what a method asks for.

    Args:
      extra: The method's arrays for the transforms.
      params: All parameters, the method's own included.

    Raises:
      ValueError: A trained group without a parameter, factors for a parameter
        whose group has no `project`, a `project` without factors, a weight of
        the group lasso that no proximal optimizer reads, or a proximal
        optimizer without one.
    """
    self.groups.check(params)
    labels = trees.flatten(self.groups.labels(params))
    self._check_proximal("alpha" in extra, params, labels)
    self._check_projected(extra, labels)

  def _check_proximal(
    self, weighed: bool, params: Any, labels: Mapping[str, str]
  ) -> None:
    """Checks that what the method shrinks is shrunk, and all of it at once."""
    if weighed and not self.proximal:
      raise ValueError(
        "The method shrinks groups of parameters by a proximal step, which "
        f"none of the optimizer's groups {[n for n, _ in self.groups.patterns]}"
        f" takes; name one of {sorted(PROXIMAL)} there, or set the method's "
        "option that adds the penalty to its loss instead."
      )
    if self.proximal and not weighed:
      raise ValueError(
        f"The optimizer's groups {sorted(self.proximal)} take a proximal step, "
        "and the method gives it no weight, so nothing would be shrunk; name "
        f"one of {sorted(OPTIMIZERS)} there, or set the method's option that "
        "leaves the penalty to the optimizer."
      )
    if self.lasso is None or not self.proximal:
      return
    for group, members in group_lasso.members(params, self.lasso).items():
      where = {labels[name] for name in members}
      if len(where) > 1 or not where <= self.proximal:
        raise ValueError(
          f"The parameters of {group!r} are shrunk together, and lie in the "
          f"optimizer's groups {sorted(where)}; put them into one, of "
          f"{sorted(PROXIMAL)}."
        )

  def _check_projected(
    self, extra: Mapping[str, Any], labels: Mapping[str, str]
  ) -> None:
    """Checks that a method's factors reach the updates that they are for."""
    names = {
      name
      for side in ("left", "right")
      for name in trees.flatten(extra.get(side))
    }
    lost = sorted(n for n in names if labels.get(n) not in self.projected)
    if lost:
      raise ValueError(
        f"The method confines the updates of {len(lost)} parameters, such as "
        f"{lost[0]!r} of the optimizer's group {labels.get(lost[0])!r}, which "
        "has no project; set it to 'update' (or 'gradient') there."
      )
    if self.projected and not names:
      raise ValueError(
        f"The optimizer's groups {sorted(self.projected)} have a project, and "
        "the method confines nothing; set project=None."
      )


def build(
  *,
  groups: Sequence[tuple[str, str]],
  epochs: float,
  lr_scale: float = 1.0,
  clip_norm: float | None = None,
  clip_scope: str = "trainable",
  l2: float = 0.0,
  lasso: LassoGroups | None = None,
  transforms: Sequence[optax.GradientTransformation] = (),
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
    lasso: Which parameters a proximal optimizer shrinks together.
    transforms: The method's, at the end of every trained group's chain.
    **settings: For each group a dict for `group_transform`, or None: frozen.

  Raises:
    ValueError: A group without settings, settings without a group, an
      unknown option, or an unknown clip_scope.
  """
  if clip_scope not in ("trainable", "all"):
    raise ValueError(f"clip_scope={clip_scope!r} must be 'trainable' or 'all'.")
  _check_settings([name for name, _ in groups], settings)
  frozen = frozenset(n for n, options in settings.items() if options is None)
  parts = Groups(tuple((name, pattern) for name, pattern in groups), frozen)
  clip: Any = transforms_lib.clip_by_global_norm(clip_norm)
  if clip_scope == "trainable":
    # Outside the mask a clip reads, and so keeps alive, frozen gradients.
    clip = optax.masked(clip, parts.trainable)
  shared = {"epochs": epochs, "lasso": lasso, "transforms": transforms}
  by_group: dict[Any, optax.GradientTransformation] = {
    name: _transform(settings[name], lr_scale, **shared) for name, _ in groups
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


def _check_settings(names: Sequence[str], settings: Mapping[str, Any]) -> None:
  """Raises ValueError unless each group has settings, and they have a group."""
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


def _transform(
  options: Mapping[str, Any] | None, lr_scale: float, **shared: Any
) -> optax.GradientTransformation:
  """Returns the transform of a group's settings, its rates scaled."""
  if options is None:
    return optax.set_to_zero()
  settled: dict[str, Any] = {"min_lr": 0.0, **options}
  if "lr" not in settled:
    raise ValueError(f"Optimizer settings {dict(options)} need an 'lr'.")
  for rate in ("lr", "min_lr"):
    settled[rate] *= lr_scale
  return group_transform(**{**settled, **shared})
