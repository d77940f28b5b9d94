"""A classifier of all ten digits: the weights for runs that forget digits.

  python main.py --my_config configs/digits_pretrain.py --workdir ./digits

The ViT of configs/glyphs_pretrain.py, trained on the training digits.
":known=8" trains on the digits 0 to 7 only.
"""

from configs import base
from configs import common
from configs import digits_l2p


def get_config(arg=None):
  """Returns one stage over all digits."""
  arg = common.parse_arg(arg, tune=False, known=10)
  config = base.get_config()
  config.name = "digits_pretrain"
  digits_l2p.stream(config, arg)
  if arg.known < 10:
    config.dataset.classes = tuple(range(arg.known))
  config.epochs = 15
  common.classifier(config)
  for group in ("head", "backbone"):
    config.optimizer[group] = common.adam(1e-3, schedule="cosine")
  return common.finish(config, arg)
