"""LoRA-Sub-DRS on the classes of DomainNet, 5 tasks of 69 classes.

Settings are those of the authors' first code (Liu and Chang, CVPR 2025). There
are no published results of the method on DomainNet.

  python main.py --my_config configs/domainnet_lora_sub.py --workdir ./dn \
      --my_config.init_checkpoint=B_16-i21k-300ep.npz

Uses the five domains of CODA-Prompt's lists (Smith et al., 2023), in TFDS's
split. ":folder=DIR,train_list=FILE,test_list=FILE" uses these lists and the
images DIR/DOMAIN/CLASS/*.jpg. Weights and ":order=" as in
configs/cifar100_lora_sub.py.
"""

from configs import base
from configs import cifar100_lora_sub
from configs import common

# CODA-Prompt's lists have no image of quickdraw.
DOMAINS = ("clipart", "infograph", "painting", "real", "sketch")


def get_config(arg=None):
  """Returns the authors' settings."""
  arg = common.parse_arg(
    arg, tasks=5, order="294", folder="", train_list="", test_list=""
  )
  config = base.get_config()
  config.name = "domainnet_lora_sub"
  config.epochs = 5
  config.dataset = {**common.tfds("domainnet_classes"), "domains": DOMAINS}
  if arg.folder or arg.train_list or arg.test_list:
    if not (arg.folder and arg.train_list and arg.test_list):
      raise ValueError(
        f"folder={arg.folder!r}, train_list={arg.train_list!r} and test_list="
        f"{arg.test_list!r} must be given together; leave all three out to "
        "read DomainNet from TFDS."
      )
    config.dataset = {
      "name": "folder",
      "root": arg.folder,
      "domains": DOMAINS,
      "train_list": arg.train_list,
      "test_list": arg.test_list,
    }
  cifar100_lora_sub.adapt(config, arg, rank=40, head_lr=1e-3)
  config.preprocess.resize = 256
  config.preprocess.antialias = True
  config.preprocess.area = (0.7, 1.0)
  config.preprocess.color_jitter = (0.3, 0.3, 0.3, 0.3)
  config.preprocess.grayscale = 0.1
  config.method = common.method(
    "lora_sub", unit_norm=True, triplet=0.1, margin=2.0, lora_b="sparse"
  )
  return common.finish(config, arg)
