"""Knowledge Swapping on scikit-learn's digits: learn 8 and 9, forget 6 and 7.

  python main.py --my_config configs/digits_swap.py --workdir ./swap

Nothing is downloaded: configs/digits_pretrain.py makes a classifier of the
digits 0 to 7 on first use, and its head gets two new columns. ":order=" is the
order of the stages, l (learn) and f (forget), such as "lf", or "joint".
":protect", ":columns", ":proximal" and ":fold" are described in
configs/swaps.py. ":tune" measures on held-out training images, as for choosing
the settings.
"""

from configs import base
from configs import common
from configs import glyphs_pretrain
from configs import swaps

KNOWN = 8


def get_config(arg=None):
  """Returns a swap that learns two digits and forgets two."""
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
  # With the paper's alpha the adapters shrink to zero before this classifier,
  # whose loss is near 0, gives them a gradient; a first stage that forgets then
  # forgets nothing.
  config.method = common.method(
    "swapping", bound=30.0, alpha=5e-4, retain_weight=1.0
  )
  swaps.options(config, arg)
  swaps.optimizer(config, lr=1e-2)
  return common.finish(config, arg)
