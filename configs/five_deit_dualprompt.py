"""DualPrompt with DeiT-Tiny on four small data sets instead of 5-datasets.

  python main.py --my_config configs/five_deit_dualprompt.py --workdir ./dual

Data and arguments as in configs/five_deit_l2p.py.
"""

from configs import base
from configs import common
from configs import five_deit_l2p


def get_config(arg=None):
  """Returns DualPrompt with one prompt for each task."""
  arg = five_deit_l2p.parse(arg)
  config = base.get_config()
  config.name = "five_deit_dualprompt"
  five_deit_l2p.stream(config, arg)
  config.method = common.method("dualprompt", pool_size=5, vote_group=16)
  common.prompt_optimizer(config, lr=0.01)
  return common.finish(config, arg)
