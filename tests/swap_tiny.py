"""A swap's run that several test files start, stop and look into."""

import toy

from configs import digits_swap

PAPER = {"alpha": 0.005, "retain_weight": 0.2}


def tiny(argument="order=lfl", **changes):
  """Returns the smoke run of configs/digits_swap.py, with the paper's weights.

  Of six classes 4 and 5 are new, 2 and 3 go, 0 and 1 stay. An epoch has 2 steps
  where 0 and 1 are retained.

  Args:
    argument: Of the config, such as "order=fl,protect".
    **changes: Keys with "__" for dots.
  """
  config = digits_swap.get_config(f"smoke,{argument}")
  config.method.update(PAPER)
  config.checkpoint.every_steps = 1000
  return toy.change(config, changes)
