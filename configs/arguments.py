"""Arguments of a config: the text after the colon of --my_config."""

from typing import Any

import ml_collections

from libml import registry


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
  """Parses arguments such as "smoke,tasks=4"; a name without value is True.

  Args:
    arg: The text after the colon of --my_config; None: no arguments.
    **defaults: The arguments of a config file, with their defaults; "smoke" is
      known in all files.

  Raises:
    ValueError: An unknown name, one that is given twice, or a value of another
      type than the default.
  """
  known = {"smoke": False, **defaults}
  parsed, given = dict(known), set()
  for item in (arg or "").split(","):
    if not item:
      continue
    name, _, text = item.partition("=")
    if name not in known:
      raise ValueError(
        f"Unknown config argument {name!r}. {registry.nearest(name, known)}"
      )
    if name in given:
      raise ValueError(
        f"The config argument {name!r} is given twice; give it once."
      )
    given.add(name)
    kind = type(known[name])
    if kind is bool:
      if text.lower() not in ("", "true", "false"):
        raise ValueError(
          f"The config argument {item!r} must be true or false: write "
          f"{name}, {name}=true or {name}=false."
        )
      parsed[name] = text.lower() != "false"
    else:
      try:
        parsed[name] = kind(text)
      except ValueError:
        raise ValueError(
          f"The config argument {item!r} must have a value of type "
          f"{kind.__name__}, such as {name}={known[name]}."
        ) from None
  return ml_collections.ConfigDict(parsed)


def order_seed(order: str) -> int | None:
  """Returns the seed of a class order; None for "natural", the given order.

  Raises:
    ValueError: `order` is neither "natural" nor a number.
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
    *variants: Arguments that are part of the name unless they are off.
  """
  on = [v if arg[v] is True else f"{v}={arg[v]}" for v in variants if arg[v]]
  return f"{name}:{','.join(on)}" if on else name
