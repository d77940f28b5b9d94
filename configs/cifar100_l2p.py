"""L2P on Split CIFAR-100, 10 tasks of 10 classes.

Wang et al., CVPR 2022, table 1: avg_acc 83.83, forgetting 7.63.

  python main.py --my_config configs/cifar100_l2p.py --workdir ./l2p \
      --my_config.init_checkpoint=ViT-B_16.npz

":paper" uses the paper's values where the released code's differ.
":rehearsal=replay" keeps 50 images of each class (in the paper avg_acc 86.31,
forgetting 5.83); configs/common.py, REHEARSAL, has the other settings.
"""

from configs import base
from configs import common


def get_config(arg=None):
  """Returns the released code's settings: 8 devices of 16 images."""
  arg = common.parse_arg(arg, paper=False, rehearsal="none")
  config = base.get_config()
  config.name = "cifar100_l2p"
  config.batch_size = 128
  config.epochs = 5
  config.scenario.num_tasks = 10
  config.dataset = common.tfds("cifar100")
  config.preprocess.train = "reference"
  config.preprocess.eval = "reference"
  config.preprocess.resize = 256
  config.model.classifier = "prompt"
  config.method = common.method("l2p")
  common.prompt_optimizer(config, lr=0.03)
  config.optimizer.lr_batch_size = 256
  common.rehearse(config, arg.rehearsal)
  if arg.paper:
    config.method.update(length=5, top_k=5, key_loss=0.5)
    config.optimizer.lr_batch_size = None
  return common.finish(config, arg)
