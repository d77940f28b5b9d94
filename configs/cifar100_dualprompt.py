"""DualPrompt on Split CIFAR-100, 10 tasks of 10 classes.

Wang et al., ECCV 2022, table 1: avg_acc 86.51, forgetting 5.16.

  python main.py --my_config configs/cifar100_dualprompt.py \
      --workdir ./dualprompt --my_config.init_checkpoint=ViT-B_16.npz

":paper" uses the paper's values where the released code's differ.
"""

from configs import base
from configs import common


def get_config(arg=None):
  """Returns the released code's settings: 8 devices of 24 images."""
  arg = common.parse_arg(arg, paper=False)
  config = base.get_config()
  config.name = "cifar100_dualprompt"
  config.batch_size = 192
  config.epochs = 5
  config.scenario.num_tasks = 10
  config.dataset = common.tfds("cifar100")
  config.preprocess.train = "reference"
  config.preprocess.eval = "reference"
  config.preprocess.resize = 256
  config.method = common.method("dualprompt")
  common.prompt_optimizer(config, lr=0.03)
  config.optimizer.lr_batch_size = 256
  if arg.paper:
    config.batch_size = 128
    config.method.length = 20
    config.method.vote_group = 16
    common.prompt_optimizer(config, lr=0.005)
    config.optimizer.lr_batch_size = None
  return common.finish(config, arg)
