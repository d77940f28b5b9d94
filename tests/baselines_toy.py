"""A baseline's run that several test files look into."""

import toy

from configs import digits_baselines


def tiny(method, **changes):
  """Returns a baseline's smoke run with one block: 3 requests of 2 epochs.

  Args:
    method: Row of configs/baselines.py.
    **changes: Keys with "__" for dots.
  """
  config = digits_baselines.get_config(f"smoke,method={method}")
  config.model.depth = 1
  config.checkpoint.every_steps = 1000
  return toy.change(config, changes)
