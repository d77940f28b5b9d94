"""LoRA-Sub-DRS's run that several test files start, stop and look into."""

import toy

from configs import base
from configs import common


def tiny(**changes):
  """Returns the smoke run with two layers: 3 tasks of 6 steps, augmented.

  The 30 images of a task make 4 batches, the last of 6.

  Args:
    **changes: Keys with "__" for dots.
  """
  config = base.get_config()
  config.name = "lora_toy"
  config.method = common.method("lora_sub", unit_norm=True)
  config.model.lora = common.key_value_lora(rank=2)
  common.lora_optimizer(config, lr=0.05, head_lr=0.02)
  config = common.smoke(config)
  config.model.depth = 2
  config.epochs = 2
  config.checkpoint.every_steps = 1000
  config.dataset.per_class = 15
  config.preprocess.train = "random_resized_crop"
  return toy.change(config, changes)


def get_config():
  """Is what main.py asks of a config file."""
  return tiny()
