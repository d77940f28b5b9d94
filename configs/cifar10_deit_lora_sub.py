"""LoRA-Sub-DRS on a CIFAR-10 subset with DeiT-Tiny, 5 tasks of 2 classes.

  python main.py --my_config configs/cifar10_deit_lora_sub.py --workdir ./lora

Arguments as in configs/cifar10_deit_l2p.py.
"""

from configs import base
from configs import cifar10_deit_l2p
from configs import common


def get_config(arg=None):
  """Returns LoRA-Sub-DRS on the tasks of configs/cifar10_deit_l2p.py."""
  arg = common.parse_arg(arg, tune=False, data=cifar10_deit_l2p.DATA, size=112)
  config = base.get_config()
  config.name = "cifar10_deit_lora_sub"
  cifar10_deit_l2p.stream(config, arg)
  config.model.lora = common.key_value_lora(rank=10)
  config.method = common.method("lora_sub", unit_norm=True)
  common.lora_optimizer(config, lr=4e-3, head_lr=2e-3)
  return common.finish(config, arg)
