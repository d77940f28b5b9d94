"""L2P on 5-datasets: CIFAR-10, MNIST, SVHN, notMNIST, Fashion-MNIST.

Wang et al., CVPR 2022, table 1: avg_acc 81.14, forgetting 4.64.

  python main.py --my_config configs/five_datasets_l2p.py --workdir ./five \
      --my_config.init_checkpoint=ViT-B_16.npz

":paper" uses the paper's values where the released code's differ. The PyTorch
port has another order:

  --my_config.dataset.order="('svhn_cropped', 'mnist', 'cifar10', 'not_mnist',
      'fashion_mnist')"

--my_config.dataset.cifar10.data_dir=DIR sets the folder of all five data sets.
"""

from configs import base
from configs import common


def stream(config):
  """Sets the five data sets, in the released code's order."""
  config.scenario = {"name": "joined", "task_incremental": False}
  config.dataset = common.tfds_collection(
    "cifar10", "mnist", "svhn_cropped", "not_mnist", "fashion_mnist"
  )
  config.preprocess.train = "reference"
  config.preprocess.eval = "reference"
  config.preprocess.resize = 256


def get_config(arg=None):
  """Returns the released code's settings: 8 devices of 16 images."""
  arg = common.parse_arg(arg, paper=False)
  config = base.get_config()
  config.name = "five_datasets_l2p"
  config.batch_size = 128
  config.epochs = 5
  stream(config)
  config.model.classifier = "prompt"
  config.method = common.method(
    "l2p", pool_size=20, key_loss=0.5, prompt_mask=True, transfer_prompts=True
  )
  common.prompt_optimizer(config, lr=0.03)
  config.optimizer.lr_batch_size = 256
  if arg.paper:
    config.method.length = 5
    config.optimizer.lr_batch_size = None
  return common.finish(config, arg)
