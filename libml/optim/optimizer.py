"""Optimizers: parameter groups by name, None = frozen.

A step is always `tx.update(grads, opt_state, params, epoch=..., **extra)`;
whatever bends it is a transform that takes arrays as extra arguments.
"""

import dataclasses
import functools
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
from libml.optim import transforms
from libml.optim.group_lasso import Groups as LassoGroups


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
        "normalize_columns=False and l2=0, and a method with groups to shrink, "
        "such as gs_lora with subgradient=False; else take 'adam' or 'sgd'."
      )
    if weight_decay:
      options["weight_decay"] = weight_decay
    return registry.build(
      PROXIMAL,
      "optimizer",
      name,
      learning_rate=rate,
      alpha=0.0,  # the method's extra argument takes its place
      groups=lasso,
      clock="epoch",
      **options,
    )
  chain = [optax.add_decayed_weights(l2)] if l2 else []
  if project == "gradient":
    chain.append(projection.project_updates())
  chain.append(registry.build(OPTIMIZERS, "optimizer", name, **options))
  if weight_decay:
    chain.append(optax.add_decayed_weights(weight_decay))
  chain.append(transforms.scale_by_rate(rate))
  if normalize_columns:
    chain.append(transforms.unit_columns())
  if project == "update":
    chain.append(projection.project_updates())
  chain.append(transforms.keep_salient())
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

    return trees.map_named(label, params)

  def trainable(self, params: Any) -> Any:
    """Returns the tree of booleans: whether a leaf is trained."""
    return jax.tree.map(lambda g: g not in self.frozen, self.labels(params))

  def sizes(self, params: Any) -> dict[str, int]:
    """Returns the number of weights: "total" and "trainable"."""
    sizes = jax.tree.map(lambda leaf: leaf.size, params)
    trained = jax.tree.map(lambda s, on: s * on, sizes, self.trainable(params))
    total, trainable = (sum(jax.tree.leaves(t)) for t in (sizes, trained))
    return {"total": total, "trainable": trainable}


@dataclasses.dataclass(frozen=True)
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
    """Checks that a method's factors reach the updates that they are for.

    Raises:
      ValueError: Factors for a parameter whose group has no `project`, a
        `project` without factors, a weight of the group lasso that no proximal
        optimizer reads, or a proximal optimizer without one.
    """
    if "alpha" in extra and not self.proximal:
      raise ValueError(
        "The method shrinks groups of parameters by a proximal step, which "
        f"none of the optimizer's groups {[n for n, _ in self.groups.patterns]}"
        f" takes; name one of {sorted(PROXIMAL)} there, or set "
        "method.subgradient=True."
      )
    if self.proximal and "alpha" not in extra:
      raise ValueError(
        f"The optimizer's groups {sorted(self.proximal)} take a proximal step, "
        "and the method gives it no weight, so nothing would be shrunk; name "
        "'adam' or 'sgd' there, or set method.subgradient=False."
      )
    labels = trees.flatten(self.groups.labels(params))
    if self.lasso is not None and self.proximal:
      for group, members in group_lasso.members(params, self.lasso).items():
        where = {labels[name] for name in members}
        if len(where) > 1 or not where <= self.proximal:
          raise ValueError(
            f"The parameters of {group!r} are shrunk together, and lie in the "
            f"optimizer's groups {sorted(where)}; put them into one, of "
            f"{sorted(PROXIMAL)}."
          )
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

  def transform(options: Mapping[str, Any] | None) -> Any:
    if options is None:
      return optax.set_to_zero()
    settled: dict[str, Any] = {"min_lr": 0.0, **options, "epochs": epochs}
    if "lr" not in settled:
      raise ValueError(f"Optimizer settings {dict(options)} need an 'lr'.")
    for rate in ("lr", "min_lr"):
      settled[rate] *= lr_scale
    return group_transform(**settled, lasso=lasso)

  clip: Any = transforms.clip_by_global_norm(clip_norm)
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
    chain = [optax.add_decayed_weights(l2, mask=matrices), *chain]
  projected = {n for n in names if (settings[n] or {}).get("project")}
  shrunk = {n for n in names if (settings[n] or {}).get("name") in PROXIMAL}
  return Optimizer(
    optax.chain(*chain), parts, frozenset(projected), frozenset(shrunk), lasso
  )


def metrics(opt_state: Any) -> dict[str, jax.Array]:
  """Returns what the transforms remembered of a step, by name.

  The learning rates of several groups are told apart by the group's name.
  """
  found = {}
  for name, leaf in trees.flatten(opt_state).items():
    parts = name.split("/")
    if parts[-1] == "l2_grads":
      found["l2_grads"] = leaf
    elif parts[-1] == "learning_rate":
      group = parts[parts.index("inner_states") + 1]
      found[f"learning_rate/{group}"] = leaf
    elif parts[-1] == "zero_groups":
      found["zero_groups"] = leaf
  return found
