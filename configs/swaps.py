"""Sections and settings that the configs of Knowledge Swapping share."""

from typing import Any

import ml_collections
from ml_collections import config_dict

from configs import common


def classes(
  known: dict[str, Any],
  forget: tuple[int | str, ...],
  *,
  learn: tuple[int | str, ...] | None = None,
  retain: tuple[int | str, ...] | None = None,
  new: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """Returns the dataset section of a swap given by lists of classes.

  Args:
    known: Data of the classes that the model knows.
    forget: Ids or names of known classes to forget.
    learn: Classes of `new` to learn, or of `known` without `new`; None: all
      classes of `new`.
    retain: Known classes to retain; None: all that are not in another list.
    new: Data of the classes to learn; None: they are in `known`.
  """
  lists = {"learn": learn, "forget": forget, "retain": retain}
  options = {
    name: config_dict.placeholder(tuple) if ids is None else ids
    for name, ids in lists.items()
  }
  found = {"name": "swap_classes", "known": known, **options}
  return found if new is None else {**found, "new": new}


def optimizer(
  config: ml_collections.ConfigDict, lr: float, **changes: Any
) -> None:
  """Trains the adapters, and the head if the method trains columns of it."""
  common.gs_lora_optimizer(config, lr, **changes)
  if config.method.new_columns != r"(?!)":
    config.optimizer.head = common.adam(lr)


def options(
  config: ml_collections.ConfigDict, arg: ml_collections.ConfigDict
) -> None:
  """Turns on variants that the paper does not have.

  Args:
    config: Changed in place.
    arg: "protect": a stage that learns keeps the loss on classes that an
      earlier stage forgot; "columns": the head's columns of the new classes are
      trained, too; "proximal": a proximal step makes the adapters of whole
      blocks exactly zero; "fold": each stage folds the adapters into the
      kernels and draws new ones.
  """
  config.method.protect = arg.protect
  config.method.subgradient = not arg.proximal
  if arg.columns:
    config.method.new_columns = r"head/(kernel|bias)"
  if arg.fold:
    config.method.update({"fold": True, "restart_optimizer": True})


def title(name: str, arg: ml_collections.ConfigDict, *more: str) -> str:
  """Returns a run's name: "digits_swap:lf" and the variants that are on."""
  on = [v for v in (*_VARIANTS, *more) if arg[v]]
  return ",".join([f"{name}{',' if ':' in name else ':'}{arg.order}", *on])


_VARIANTS = ("protect", "columns", "proximal", "fold")
# Arguments that all of these configs take, with their defaults.
ARGUMENTS = {
  "order": "lf",
  **dict.fromkeys(_VARIANTS, False),
  "tune": False,
}
