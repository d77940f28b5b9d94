"""A run that several test files start, stop and damage."""

from configs import cifar100_l2p


def change(config, changes):
  """Returns the config with some keys changed, "__" standing for dots."""
  for key, value in changes.items():
    *folders, name = key.split("__")
    part = config
    for folder in folders:
      part = part[folder]
    part[name] = value
  return config


def tiny(**changes):
  """Returns L2P's smoke run with one layer: 3 stages of 8 steps."""
  config = cifar100_l2p.get_config("smoke")
  config.model.depth = 1
  config.epochs = 2
  config.checkpoint.every_steps = 3
  return change(config, changes)


def get_config():
  """Is what main.py asks of a config file."""
  return tiny()
