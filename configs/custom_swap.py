"""Learn, forget and retain your own folders of images.

  python main.py --my_config configs/custom_swap.py:learn=new,forget=out \
      --workdir ./swap --my_config.init_checkpoint=ViT-B_16-224.npz

":learn=DIR", ":forget=DIR" and ":retain=DIR" hold a folder of images for each
class, DIR/CLASS/*.jpg; a quarter of the images is used for testing. With
":divided" they hold DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg. The folder
of a class to forget or to retain begins with the number of the class's column
in the weights' head, such as 2_shark. With ":names=FILE", a file with the names
of the head's classes, one per line, folders have these names instead. ":known="
is the number of the head's columns.

":deit", ":variant=" and ":size=" as in configs/custom_l2p.py; the other
arguments are those of configs/digits_swap.py.
"""

from configs import base
from configs import common
from configs import custom_l2p
from configs import swaps


def get_config(arg=None):
  """Returns a swap that uses all images of three folders."""
  arg = common.parse_arg(
    arg,
    **swaps.ARGUMENTS,
    learn="learn",
    forget="forget",
    retain="retain",
    divided=False,
    names="",
    known=1000,
    deit=False,
    variant="",
    size=0,
  )
  config = base.get_config()
  config.name = swaps.title("custom_swap", arg)
  config.batch_size = 16
  config.epochs = 5
  config.holdout = 0.2 if arg.tune else 0.0
  config.init_head = "keep"
  config.export = True
  config.scenario = common.scenario("swapping", order=arg.order, ratio=1.0)
  config.dataset = {
    "name": "swap_folders",
    "learn": arg.learn,
    "forget": arg.forget,
    "retain": arg.retain,
    "names": arg.names or None,
    "known": None if arg.names else arg.known,
    "test_fraction": None if arg.divided else 0.25,
  }
  config.preprocess.train = "none"
  config.preprocess.antialias = True
  config.preprocess.mean = config.preprocess.std = (0.5,) * 3
  custom_l2p.network(config, arg)
  config.model.lora = common.ffn_lora()
  config.method = common.method("swapping")
  swaps.options(config, arg)
  swaps.optimizer(config, lr=1e-2)
  return common.finish(config, arg)
