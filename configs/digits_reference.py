"""Reference methods on digits, to compare with configs/digits_l2p.py.

  python main.py --my_config configs/digits_reference.py:method=joint \
      --workdir ./digits_joint

":method=" finetune, head, masked_head, lora, nearest_mean, ranpac, inflora or
joint; ":tune" tests on a quarter of the training images.
"""

from configs import base
from configs import common
from configs import digits_l2p


def get_config(arg=None):
  """Returns a reference method on the tasks of configs/digits_l2p.py."""
  arg = common.parse_arg(arg, method="finetune", tune=False)
  config = base.get_config()
  digits_l2p.stream(config, arg)
  common.reference(
    config,
    arg.method,
    head_lr=0.01,
    body_lr=1e-3,
    lora_lrs={"lora": 2e-3, "inflora": 5e-3},
  )
  return common.finish(config, arg)
