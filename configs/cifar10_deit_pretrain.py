"""DeiT-Tiny fine-tuned on CIFAR-10: the weights for runs that forget classes.

  python main.py --my_config configs/cifar10_deit_pretrain.py --workdir ./deit

Arguments as in configs/cifar10_deit_l2p.py.
"""

from configs import base
from configs import cifar10_deit_l2p
from configs import common


def get_config(arg=None):
  """Returns one stage over all ten classes."""
  arg = common.parse_arg(arg, tune=False, data=cifar10_deit_l2p.DATA, size=112)
  config = base.get_config()
  config.name = "cifar10_deit_pretrain"
  cifar10_deit_l2p.stream(config, arg)
  config.epochs = 3
  common.classifier(config)
  config.optimizer.head = common.adam(1e-3, schedule="cosine")
  config.optimizer.backbone = common.adam(5e-5, schedule="cosine")
  return common.finish(config, arg)
