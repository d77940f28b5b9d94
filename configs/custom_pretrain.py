"""A classifier of your own images, for runs that forget some of its classes.

  python main.py --my_config configs/custom_pretrain.py:folder=photos \
      --workdir ./classifier --my_config.init_checkpoint=ViT-B_16.npz

writes ./classifier/export/params.npz. All weights are trained on all classes at
once; epochs and rates are those of configs/cifar10_deit_pretrain.py, chosen for
DeiT-Tiny on CIFAR-10. Arguments as in configs/custom_l2p.py, but `tasks`.
"""

from configs import base
from configs import common
from configs import custom_l2p


def get_config(arg=None):
  """Returns one stage over all classes."""
  arg = common.parse_arg(arg, **custom_l2p.ARGUMENTS)
  config = base.get_config()
  config.name = "custom_pretrain"
  config.preprocess.mean = config.preprocess.std = (0.5,) * 3
  custom_l2p.images(config, arg)
  config.epochs = 3
  config.preprocess.area = (0.5, 1.0)
  common.classifier(config)
  config.optimizer.head = common.adam(1e-3, schedule="cosine")
  config.optimizer.backbone = common.adam(5e-5, schedule="cosine")
  return common.finish(config, arg)
