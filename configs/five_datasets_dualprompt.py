"""DualPrompt on 5-datasets: CIFAR-10, MNIST, SVHN, notMNIST, Fashion-MNIST.

Wang et al., ECCV 2022, supplement: avg_acc 88.08, forgetting 2.21.

  python main.py --my_config configs/five_datasets_dualprompt.py \
      --workdir ./five --my_config.init_checkpoint=ViT-B_16.npz

The settings of this run were never released. Prompts, learning rate and batch
size are those of configs/cifar100_dualprompt.py, with one prompt for each task;
data, order and epochs are those of configs/five_datasets_l2p.py. ":paper" uses
the paper's values for CIFAR-100.
"""

from configs import base
from configs import common
from configs import five_datasets_l2p


def get_config(arg=None):
  """Returns the released settings for CIFAR-100 on 5-datasets."""
  arg = common.parse_arg(arg, paper=False)
  config = base.get_config()
  config.name = "five_datasets_dualprompt"
  config.batch_size = 192
  config.epochs = 5
  five_datasets_l2p.stream(config)
  config.method = common.method("dualprompt", pool_size=5)
  common.prompt_optimizer(config, lr=0.03)
  config.optimizer.lr_batch_size = 256
  if arg.paper:
    config.batch_size = 128
    config.method.length = 20
    config.method.vote_group = 16
    common.prompt_optimizer(config, lr=0.005)
    config.optimizer.lr_batch_size = None
  return common.finish(config, arg)
