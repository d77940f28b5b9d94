"""L2P on your own images.

  python main.py --my_config configs/custom_l2p.py:folder=photos \
      --workdir ./photos_l2p --my_config.init_checkpoint=ViT-B_16.npz

":folder=DIR" reads DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg, ":npz=FILE"
the arrays x_train, y_train, x_test and y_test. ":tasks=" must divide the number
of classes; without it, as many tasks are taken as leave two classes or more
each, up to 10.

The file of weights says which ViT it is, the image size, and which GELU;
":variant=" and ":size=" insist on a variant and on a size. Only an export says
how images are normalized: ":deit" sets DeiT's GELU, mean and standard
deviation. ":tune" tests on a fifth of the training images.
"""

from ml_collections import config_dict

from configs import base
from configs import common

# Arguments of the configs for your own images, with their defaults.
ARGUMENTS = {
  "folder": "photos",
  "npz": "",
  "deit": False,
  "variant": "",
  "size": 0,
  "tune": False,
}


def network(config, arg):
  """Sets the ViT that `deit`, `variant` and `size` describe."""
  config.model.update(
    variant=config_dict.placeholder(str),
    image_size=config_dict.placeholder(int),
    gelu=config_dict.placeholder(str),
  )
  config.model.variant = arg.variant or None
  config.model.image_size = arg.size or None
  if arg.deit:
    config.model.gelu = "erf"
    config.preprocess.mean = common.IMAGENET_MEAN
    config.preprocess.std = common.IMAGENET_STD


def images(config, arg):
  """Sets the images and the network."""
  config.batch_size = 16
  config.holdout = 0.2 if arg.tune else 0.0
  config.dataset = {"name": "folder", "root": arg.folder}
  if arg.npz:
    config.dataset = {"name": "npz", "path": arg.npz}
  network(config, arg)


def get_config(arg=None):
  """Returns L2P with the released code's prompts for CIFAR-100."""
  arg = common.parse_arg(arg, tasks=0, **ARGUMENTS)
  config = base.get_config()
  config.name = "custom_l2p"
  images(config, arg)
  config.epochs = 5
  config.scenario.num_tasks = config_dict.placeholder(int)
  config.scenario.num_tasks = arg.tasks or None
  config.model.classifier = "prompt"
  config.method = common.method("l2p")
  common.prompt_optimizer(config, lr=0.003)
  return common.finish(config, arg)
