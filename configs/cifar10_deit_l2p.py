"""L2P on a CIFAR-10 subset with DeiT-Tiny, 5 tasks of 2 classes.

  python main.py --my_config configs/cifar10_deit_l2p.py --workdir ./l2p

Reads 500 training and 100 test images of each class, and the weights, from
files under ":data=DIR". ":size=" sets the image size: at 112, the default, the
position embeddings are resized, and a run takes a quarter of the time of 224.
":tune" tests on a fifth of the training images.
"""

from configs import base
from configs import common

# Default folder of the files.
DATA = "../shared/data"


def deit(config, arg):
  """Sets DeiT-Tiny and its training in a config."""
  config.batch_size = 16
  config.epochs = 1
  config.holdout = 0.2 if arg.tune else 0.0
  config.init_checkpoint = (
    f"{arg.data}/vit_ti16_deit_imagenet1k/vit_ti16_deit_imagenet1k.f16.npz"
  )
  config.preprocess.mean = common.IMAGENET_MEAN
  config.preprocess.std = common.IMAGENET_STD
  config.preprocess.area = (0.5, 1.0)
  config.preprocess.resize = arg.size
  config.model.variant = "ViT-Ti_16"
  config.model.gelu = "erf"
  config.model.image_size = arg.size


def stream(config, arg):
  """Sets images, tasks and DeiT-Tiny in a config."""
  deit(config, arg)
  config.scenario.num_tasks = 5
  config.dataset = {
    "name": "npz",
    "path": f"{arg.data}/cifar10_6k/cifar10_6k.npz",
  }


def get_config(arg=None):
  """Returns L2P with the released code's prompts for CIFAR-100."""
  arg = common.parse_arg(arg, tune=False, data=DATA, size=112)
  config = base.get_config()
  config.name = "cifar10_deit_l2p"
  stream(config, arg)
  config.model.classifier = "prompt"
  config.method = common.method("l2p")
  common.prompt_optimizer(config, lr=0.001)
  return common.finish(config, arg)
