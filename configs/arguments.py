"""What stands after the colon of --my_config."""

from typing import Any

import ml_collections

from libml import registry


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
  """Reads "smoke,tasks=4": a bare name is True; "smoke" is always known.

  Args:
    arg: What follows the colon of --my_config; None: nothing.
    **defaults: The names that a config file takes, with their defaults.

  Raises:
    ValueError: An unknown name, or a value of another type.
  """
  known = {"smoke": False, **defaults}
  parsed = dict(known)
  for item in (arg or "").split(","):
    if not item:
      continue
    name, _, text = item.partition("=")
    if name not in known:
      raise ValueError(
        f"Unknown config argument {name!r}. {registry.nearest(name, known)}"
      )
    kind = type(known[name])
    if kind is bool:
      if text.lower() not in ("", "true", "false"):
        raise ValueError(f"{item!r}: {name} is either true or false.")
      parsed[name] = text.lower() != "false"
    else:
      try:
        parsed[name] = kind(text)
      except ValueError:
        raise ValueError(
          f"{item!r}: {name} takes a value of type {kind.__name__}."
        ) from None
  return ml_collections.ConfigDict(parsed)


def order_seed(order: str) -> int | None:
  """Returns the seed of a class order: "natural" (None), or a number.

  Raises:
    ValueError: Anything else.
  """
  if order == "natural":
    return None
  if not order.isdecimal():
    raise ValueError(
      f"order={order!r} must be 'natural' or the seed that draws the class "
      "order, such as 1993."
    )
  return int(order)


def title(name: str, arg: ml_collections.ConfigDict, *variants: str) -> str:
  """Returns a run's name: "digits_gs_lora:plus,shots=4".

  Args:
    name: Of the config file.
    arg: What `parse_arg` returned.
    *variants: Names of arguments that tell runs apart, where they are on.
  """
  on = [v if arg[v] is True else f"{v}={arg[v]}" for v in variants if arg[v]]
  return f"{name}:{','.join(on)}" if on else name
