"""DualPrompt on scikit-learn's handwritten digits, 5 tasks of 2 digits.

  python main.py --my_config configs/digits_dualprompt.py --workdir ./dual

":tune" tests on a quarter of the training images.
"""

from configs import base
from configs import common
from configs import digits_l2p


def get_config(arg=None):
  """Returns DualPrompt on the tasks of configs/digits_l2p.py."""
  arg = common.parse_arg(arg, tune=False)
  config = base.get_config()
  config.name = "digits_dualprompt"
  digits_l2p.stream(config, arg)
  config.method = common.method("dualprompt", vote_group=16)
  common.prompt_optimizer(config, lr=0.003)
  return common.finish(config, arg)
