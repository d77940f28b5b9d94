"""DualPrompt on Split ImageNet-R, 10 tasks of 20 classes.

Wang et al., ECCV 2022, table 2: avg_acc 68.13, forgetting 4.68.

  python main.py --my_config configs/imr_dualprompt.py \
      --workdir ./imr --my_config.init_checkpoint=ViT-B_16.npz

":paper" uses the paper's values where the released code's differ; ":tune" tests
on a part of the training images. ":train_list=FILE,test_list=FILE" reads the
names of the images from two files, one name (n01443537/art_0.jpg) a line, or
from the two .yaml files of CODA-Prompt (Smith et al., 2023), with their class
ids.
"""

from configs import base
from configs import common


def stream(config, arg):
  """Sets ImageNet-R, divided by TFDS's order or by lists.

  Raises:
    ValueError: Both ":tune" and lists are given.
  """
  images = common.tfds("imagenet_r_tuning" if arg.tune else "imagenet_r")
  if arg.train_list or arg.test_list:
    if arg.tune:
      raise ValueError(
        f"{config.name} takes ':tune' or lists, but not both; with lists, set "
        "--my_config.holdout=0.2 instead of ':tune'."
      )
    images["train_list"] = arg.train_list or None
    images["test_list"] = arg.test_list or None
    images["train_split"] = "test"  # TFDS's only split; the lists divide it
  config.dataset = images


def get_config(arg=None):
  """Returns the released code's settings: 8 devices of 24 images."""
  arg = common.parse_arg(
    arg, paper=False, tune=False, train_list="", test_list=""
  )
  config = base.get_config()
  config.name = "imr_dualprompt"
  config.batch_size = 192
  config.epochs = 50
  config.scenario.num_tasks = 10
  stream(config, arg)
  config.preprocess.train = "reference"
  config.preprocess.eval = "reference"
  config.preprocess.resize = 256
  # The released code chooses prompts for each image here, also in training.
  config.method = common.method("dualprompt", length=20, vote_group=0)
  common.prompt_optimizer(config, lr=0.005)
  config.optimizer.lr_batch_size = 256
  if arg.paper:
    config.batch_size = 128
    config.optimizer.lr_batch_size = None
  return common.finish(config, arg)
