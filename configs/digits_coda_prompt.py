"""CODA-Prompt on scikit-learn's handwritten digits, 5 tasks of 2 digits.

  python main.py --my_config configs/digits_coda_prompt.py --workdir ./coda

":tune" tests on a quarter of the training images, as for choosing the settings.
"""

from configs import base
from configs import cifar100_coda_prompt
from configs import common
from configs import digits_l2p


def get_config(arg=None):
  """Returns CODA-Prompt on the tasks of configs/digits_l2p.py."""
  arg = common.parse_arg(arg, tune=False)
  config = base.get_config()
  config.name = "digits_coda_prompt"
  digits_l2p.stream(config, arg)
  config.method = common.method("coda_prompt", pool_size=50)
  cifar100_coda_prompt.optimize(config, lr=0.003)
  return common.finish(config, arg)
