"""LoRA-Sub-DRS on scikit-learn's handwritten digits, 5 tasks of 2 digits.

  python main.py --my_config configs/digits_lora_sub.py --workdir ./lora_sub

":tune" tests on a quarter of the training images, as for choosing the rates.
"""

from configs import base
from configs import common
from configs import digits_l2p


def get_config(arg=None):
  """Returns LoRA-Sub-DRS on the tasks of configs/digits_l2p.py."""
  arg = common.parse_arg(arg, tune=False)
  config = base.get_config()
  config.name = "digits_lora_sub"
  digits_l2p.stream(config, arg)
  config.model.lora = common.key_value_lora(rank=10)
  config.method = common.method("lora_sub", unit_norm=True)
  common.lora_optimizer(config, lr=2e-4, head_lr=2e-3)
  return common.finish(config, arg)
