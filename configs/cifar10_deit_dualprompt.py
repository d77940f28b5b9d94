"""DualPrompt on a CIFAR-10 subset with DeiT-Tiny, 5 tasks of 2 classes.

  python main.py --my_config configs/cifar10_deit_dualprompt.py --workdir ./dual

Arguments as in configs/cifar10_deit_l2p.py.
"""

from configs import base
from configs import cifar10_deit_l2p
from configs import common


def get_config(arg=None):
  """Returns DualPrompt with the released code's prompts for CIFAR-100."""
  arg = common.parse_arg(arg, tune=False, data=cifar10_deit_l2p.DATA, size=112)
  config = base.get_config()
  config.name = "cifar10_deit_dualprompt"
  cifar10_deit_l2p.stream(config, arg)
  config.method = common.method("dualprompt", vote_group=16)
  common.prompt_optimizer(config, lr=0.01)
  return common.finish(config, arg)
