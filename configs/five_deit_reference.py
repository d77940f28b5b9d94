"""Reference methods to compare with configs/five_deit_l2p.py.

  python main.py --my_config configs/five_deit_reference.py:method=joint \
      --workdir ./joint

":method=" finetune, head, masked_head, lora, nearest_mean, ranpac, inflora or
joint; further arguments as in configs/five_deit_l2p.py.
"""

from configs import base
from configs import cifar10_deit_reference
from configs import common
from configs import five_deit_l2p


def get_config(arg=None):
  """Returns a reference method on the tasks of configs/five_deit_l2p.py."""
  arg = five_deit_l2p.parse(arg, method="finetune")
  config = base.get_config()
  five_deit_l2p.stream(config, arg)
  common.reference(config, arg.method, **cifar10_deit_reference.RATES)
  return common.finish(config, arg)
