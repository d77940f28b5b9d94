"""GS-LoRA on ImageNet100: four requests forget 20 classes each.

Zhao et al. 2025 (the extension of their CVPR 2024 paper), Table 4: 85.00 % of
those still to be kept and 0.10 % of the forgotten are recognized after the
first request (H 86.13), 86.30 and 0.20 after the fourth (H 86.30). The authors
say that their scripts, whose values stand here, need not be those of the table.

  python main.py --workdir ./forget \
      --my_config configs/imagenet100_gs_lora.py:folder=DIR,names=FILE \
      --my_config.init_checkpoint=ViT.safetensors

DIR holds train/WNID/* and test/WNID/* of 100 classes; where the download has
train.X1 to train.X4 and val.X, put their folders together under these names.
The weights are a ViT-B/16 with its head of 1000 classes; FILE names these in
their order, one a line, and the 100 columns are picked by name. Without names
the head must have the classes of DIR, in the order of their names.

":others=DIR" measures the other 900 classes, too: DIR/WNID/* are their
validation images, and the head keeps all 1000 columns. ":plus", ":parity" and
":tune" as in configs/casia100_gs_lora.py, whose lasso this has, too; the class
order is the same.
"""

from configs import base
from configs import casia100
from configs import casia100_gs_lora
from configs import common

# The scripts' values; see configs/casia100_gs_lora.py.
RUN = {**casia100_gs_lora.CONTINUAL, "beta": (0.2, 0.25, 0.25, 0.25)}
PLUS = {"proto_forget": (0.05,) * 4, "average_epoch": 30}


def scenario(arg):
  """Returns a config with the requests and the network, without a method.

  Raises:
    ValueError: Further classes, and no names to find the head's columns by.
  """
  if arg.others and not arg.names:
    raise ValueError(
      f"others={arg.others!r} makes a head of all classes, and the file's rows "
      "must be found by name: give names=FILE, the names of its 1000 classes."
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
  # The same for training as for testing.
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
  """Returns the published run, or our reading of it."""
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
