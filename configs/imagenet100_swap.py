"""Knowledge Swapping on ImageNet100: five classes forgotten, others learned.

Xing et al., "Knowledge Swapping via Learning and Unlearning", ICML 2025.

  python main.py --workdir ./swap \
      --my_config configs/imagenet100_swap.py:folder=DIR,learn=cub \
      --my_config.init_checkpoint=ViT-B_16.safetensors

DIR holds train/WNID/* and test/WNID/* of 100 classes. The weights are a
ViT-B/16 with a head of these classes, in the order of their names; for a head
of 1000 classes see ":names=FILE" in configs/imagenet100_gs_lora.py. ":learn="
is cub, pets, resisc45 or plantvillage, prepared by TensorFlow Datasets;
":classes=10" learns 10 of its classes. The authors' classes are not published:
those to learn are drawn with a fixed seed, those to forget are the last five of
GS-LoRA's order.

":parity" uses the released code's head of 200 columns, most of which belong to
no class. The other arguments are those of configs/digits_swap.py.
"""

import random

from configs import base
from configs import casia100
from configs import common
from configs import swaps

# Name -> (key of DATASETS, its classes).
LEARN = {
  "cub": ("caltech_birds2011", 200),
  "pets": ("oxford_iiit_pet", 37),
  "resisc45": ("resisc45", 45),
  "plantvillage": ("plant_village", 38),
}
HEAD = 200


def learned(name, count):
  """Returns the data set and the ids of the classes to learn.

  Raises:
    ValueError: An unknown data set, or more classes than it has.
  """
  if name not in LEARN:
    raise ValueError(f"learn={name!r} must be one of {sorted(LEARN)}.")
  row, total = LEARN[name]
  if not 1 <= count <= total:
    raise ValueError(f"classes={count} of learn={name!r} must be 1 to {total}.")
  # Draw all classes, so that the first five of ten are those of count 5.
  drawn = random.Random(1337).sample(range(total), total)
  return common.tfds(row), tuple(drawn[:count])


def get_config(arg=None):
  """Returns the published run or, without ":parity", our version of it."""
  arg = common.parse_arg(
    arg,
    **swaps.ARGUMENTS,
    folder="imagenet100",
    names="",
    learn="cub",
    classes=5,
    parity=False,
  )
  config = base.get_config()
  config.name = swaps.title(f"imagenet100_swap:{arg.learn}", arg, "parity")
  config.batch_size = 80
  config.epochs = 5
  config.holdout = 0.2 if arg.tune else 0.0
  config.init_head = "keep"
  config.init_head_names = arg.names or None
  config.export = True
  new, learn = learned(arg.learn, arg.classes)
  config.dataset = swaps.classes(
    {"name": "folder", "root": arg.folder},
    forget=casia100.ORDER[-5:],
    new=new,
    learn=learn,
  )
  spare = HEAD - 100 - arg.classes if arg.parity else 0
  config.scenario = common.scenario("swapping", order=arg.order, spare=spare)
  # The same chain in training and in testing, without cropping.
  config.preprocess.train = "none"
  config.preprocess.eval = "reference"
  config.preprocess.resize = 224
  config.preprocess.mean = (0.5,) * 3
  config.preprocess.std = (0.5,) * 3
  config.model.gelu = "erf"
  config.model.dropout = 0.1
  config.model.lora = common.ffn_lora()
  config.method = common.method("swapping")
  swaps.options(config, arg)
  swaps.optimizer(config, lr=1e-2)
  return common.finish(config, arg)
