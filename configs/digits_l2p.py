"""L2P on scikit-learn's handwritten digits, 5 tasks of 2 digits.

  python main.py --my_config configs/digits_l2p.py --workdir ./digits

Nothing is downloaded: configs/glyphs_pretrain.py makes the weights on first
use. ":tune" tests on a quarter of the training images.
"""

from configs import base
from configs import common
from configs import glyphs_pretrain


def stream(config, arg):
  """Sets the digits, their tasks and the pretrained model."""
  config.batch_size = 16
  config.epochs = 10
  config.holdout = 0.25 if arg.tune else 0.0
  config.pretrain = "glyphs_pretrain"
  config.scenario.num_tasks = 5
  config.dataset = {"name": "digits"}
  config.preprocess.train = "none"
  config.preprocess.eval = "native"
  glyphs_pretrain.model(config)


def get_config(arg=None):
  """Returns L2P with the settings of the demo."""
  arg = common.parse_arg(arg, tune=False)
  config = base.get_config()
  config.name = "digits_l2p"
  stream(config, arg)
  config.model.classifier = "prompt"
  # As in the released code for 5-datasets, each task trains its own prompts.
  config.method = common.method(
    "l2p", length=5, top_k=2, prompt_mask=True, transfer_prompts=True
  )
  config.epochs = 5
  common.prompt_optimizer(config, lr=0.001)
  return common.finish(config, arg)
