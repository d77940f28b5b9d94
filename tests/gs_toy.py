"""GS-LoRA's run that several test files start, stop and look into."""

import toy

from configs import base
from configs import common


def tiny(method="gs_lora", **changes):
  """Returns the smoke run with three blocks: 3 requests of 4 epochs.

  Alpha is such that some blocks become zero, and not all.

  Args:
    method: gs_lora or gs_lora_plus.
    **changes: Keys with "__" for dots.
  """
  config = base.get_config()
  config.name = "gs_toy"
  config.init_head = "keep"
  config.scenario = common.forgetting(classes_per_request=1)
  config.model.lora = common.ffn_lora(rank=2)
  options = dict(bound=6.0, beta=(0.2, 0.3, 0.4), alpha=0.42)
  if method == "gs_lora_plus":
    options |= {"proto_forget": (0.01,) * 3, "proto_retain": (0.0,) * 3}
  config.method = common.method(method, restart_slope=50**0.5, **options)
  common.gs_lora_optimizer(config, lr=0.05)
  config = common.smoke(config)
  config.model.depth = 3
  config.epochs = 4
  config.checkpoint.every_steps = 1000
  config.method.alpha_epoch = 2
  config.method.beta_decay_epoch = 3
  if changes.get("method__subgradient"):
    config.optimizer.lora.name = "adam"
  return toy.change(config, changes)


def get_config():
  """Is what main.py asks of a config file."""
  return tiny()
