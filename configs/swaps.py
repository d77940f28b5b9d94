"""Parts that the configs which swap knowledge share."""

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
  """Returns the data of a swap whose sets are lists of classes."""
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
  """Trains the adapters, and a head where the method moves columns of it."""
  common.gs_lora_optimizer(config, lr, **changes)
  if config.method.new_columns != r"(?!)":
    config.optimizer.head = common.adam(lr)


def options(
  config: ml_collections.ConfigDict, arg: ml_collections.ConfigDict
) -> None:
  """Turns on what the paper has not.

  Args:
    config: Changed in place.
    arg: "protect": what is forgotten stays in the loss of a later stage that
      learns; "columns": the new classes' columns of the head are trained, too;
      "proximal": blocks become exactly zero; "fold": each stage has adapters
      of its own.
  """
  config.method.protect = arg.protect
  config.method.subgradient = not arg.proximal
  if arg.columns:
    config.method.new_columns = r"head/(kernel|bias)"
  if arg.fold:
    config.method.update({"fold": True, "restart_optimizer": True})


def title(name: str, arg: ml_collections.ConfigDict, *more: str) -> str:
  """Returns a run's name: "digits_swap:lf" and what differs from the paper."""
  on = [v for v in (*_VARIANTS, *more) if arg[v]]
  return ",".join([f"{name}{',' if ':' in name else ':'}{arg.order}", *on])


_VARIANTS = ("protect", "columns", "proximal", "fold")
# Arguments that all of these configs take.
ARGUMENTS = {
  "order": "lf",
  **dict.fromkeys(_VARIANTS, False),
  "tune": False,
}
