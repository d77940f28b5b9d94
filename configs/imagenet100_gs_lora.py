"""GS-LoRA on ImageNet100: four requests forget 20 classes each.

Zhao et al. 2025 (the extension of their CVPR 2024 paper), table 4: after the
first request 85.00 % of the classes to retain and 0.10 % of the forgotten are
recognized (H 86.13), after the fourth 86.30 % and 0.20 % (H 86.30). The values
here are those of the authors' scripts, which by their own account may differ
from those behind the table.

  python main.py --workdir ./forget \
      --my_config configs/imagenet100_gs_lora.py:folder=DIR,names=FILE \
      --my_config.init_checkpoint=ViT.safetensors

DIR holds train/WNID/* and test/WNID/* of 100 classes; move the folders of the
download's train.X1 to train.X4 and val.X there. The weights are a ViT-B/16 with
its head of 1000 classes; FILE has the names of these classes, one per line, in
the order of the head's columns, of which the 100 are picked by name. Without
":names=" the head must have the classes of DIR, in the order of their names.

":others=DIR" also measures the other 900 classes: DIR/WNID/* are their
validation images, and the head keeps all 1000 columns. ":plus", ":parity",
":tune", the group lasso and the class order are as in
configs/casia100_gs_lora.py.
"""

from configs import base
from configs import casia100
from configs import casia100_gs_lora
from configs import common

# Values of the authors' scripts, as RUNS and PLUS in casia100_gs_lora.py.
RUN = {**casia100_gs_lora.CONTINUAL, "beta": (0.2, 0.25, 0.25, 0.25)}
PLUS = {"proto_forget": (0.05,) * 4, "average_epoch": 30}


def scenario(arg):
  """Returns a config with the requests and the network, without a method.

  Raises:
    ValueError: `others` without `names`.
  """
  if arg.others and not arg.names:
    raise ValueError(
      f"others={arg.others!r} needs a head of all 1000 classes, whose columns "
      "are found by name: give names=FILE, a file with the class names."
    )
  config = base.get_config()
  config.batch_size = 48
  config.holdout = 0.2 if arg.tune else 0.0
  config.dataset = {
    "name": "folder",
    "root": arg.folder,
    "others": arg.others or None,
    "expected": {"test_total": 5000},
  }
  config.init_head_names = arg.names or None
  # The same chain in training and in testing.
  config.preprocess.train = "none"
  config.preprocess.eval = "center_crop"
  config.preprocess.resize = 256
  config.preprocess.antialias = True
  config.preprocess.mean = common.IMAGENET_MEAN
  config.preprocess.std = common.IMAGENET_STD
  config.model.gelu = "erf"
  config.scenario = common.forgetting(
    order=casia100.ORDER, ratio=0.05, redraw=arg.parity
  )
  return config


def get_config(arg=None):
  """Returns the published run or, without ":parity", our version of it."""
  arg = common.parse_arg(
    arg,
    folder="imagenet100",
    others="",
    names="",
    tune=False,
    plus=False,
    parity=False,
  )
  config = scenario(arg)
  config.name = common.title("imagenet100_gs_lora", arg, "plus", "parity")
  config.model.lora = common.ffn_lora(rank=8)
  casia100_gs_lora.adapt(config, arg, RUN, PLUS)
  return common.finish(config, arg)
