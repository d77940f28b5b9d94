"""Knowledge Swapping on scikit-learn's digits: learn 8 and 9, forget 6 and 7.

  python main.py --my_config configs/digits_swap.py --workdir ./swap

No download: a classifier of the digits 0 to 7 comes from
configs/digits_pretrain.py, made on first use, and its head gets two columns.
":order=" is a word of l (learn) and f (forget), or "joint"; what ":protect",
":columns", ":proximal" and ":fold" turn on is in configs/swaps.py; ":tune"
measures on held-out training images, by which the settings were chosen.
"""

from configs import base
from configs import common
from configs import glyphs_pretrain
from configs import swaps

KNOWN = 8


def get_config(arg=None):
  """Returns a swap of two digits for two."""
  arg = common.parse_arg(arg, **swaps.ARGUMENTS)
  config = base.get_config()
  config.name = swaps.title("digits_swap", arg)
  config.batch_size = 16
  config.epochs = 15
  tune = ",tune" if arg.tune else ""
  config.pretrain = f"digits_pretrain:known={KNOWN}{tune}"
  config.init_head = "keep"
  config.export = True
  config.holdout = 0.25 if arg.tune else 0.0
  config.scenario = common.scenario("swapping", order=arg.order, ratio=0.5)
  config.dataset = swaps.classes(
    {"name": "digits"}, forget=(6, 7), learn=(8, 9)
  )
  config.preprocess.train = "none"
  config.preprocess.eval = "native"
  glyphs_pretrain.model(config)
  config.model.lora = common.ffn_lora()
  # At the paper's alpha the adapters shrink to nothing before a classifier this
  # sure of itself gives them a gradient, and nothing is forgotten first.
  config.method = common.method(
    "swapping", bound=30.0, alpha=5e-4, retain_weight=1.0
  )
  swaps.options(config, arg)
  swaps.optimizer(config, lr=1e-2)
  return common.finish(config, arg)
