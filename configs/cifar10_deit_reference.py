"""Reference methods to compare with configs/cifar10_deit_l2p.py.

  python main.py --my_config configs/cifar10_deit_reference.py:method=joint \
      --workdir ./joint

":method=" finetune, head, masked_head, lora, nearest_mean, ranpac, inflora or
joint; further arguments as in configs/cifar10_deit_l2p.py.
"""

from configs import base
from configs import cifar10_deit_l2p
from configs import common

# Learning rates for DeiT-Tiny; configs/five_deit_reference.py uses them, too.
RATES = {
  "head_lr": 0.01,
  "body_lr": 1e-4,
  "lora_lrs": {"lora": 2e-3, "inflora": 1e-3},
}


def get_config(arg=None):
  """Returns a reference method on the tasks of configs/cifar10_deit_l2p.py."""
  arg = common.parse_arg(
    arg, method="finetune", tune=False, data=cifar10_deit_l2p.DATA, size=112
  )
  config = base.get_config()
  cifar10_deit_l2p.stream(config, arg)
  common.reference(config, arg.method, **RATES)
  return common.finish(config, arg)
