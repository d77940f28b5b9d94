"""LoRA-Sub-DRS on Split CIFAR-100, 10 tasks of 10 classes.

Liu and Chang, CVPR 2025, 5 seeds: avg_acc 89.14, curve_mean_acc 92.55; 20 tasks
of 5: 88.69, 92.25. LibContinual's rerun: 89.50, 93.11; 88.29, 92.71.

  python main.py --my_config configs/cifar100_lora_sub.py --workdir ./lora_sub \
      --my_config.init_checkpoint=B_16-i21k-300ep.npz

The weights are AugReg's, storage.googleapis.com/vit_models/augreg/
B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz, not L2P's.
":tasks=20" makes 20 tasks. ":order=natural" keeps the order of the classes, as
the authors do; a number is the seed of a drawn order, by default that of
LibContinual, ":order=1993".
"""

from configs import base
from configs import common


def adapt(config, arg, *, rank, head_lr):
  """Sets what all runs of the paper share.

  Args:
    config: Changed in place.
    arg: "tasks" and "order".
    rank: Of the adapters.
    head_lr: Learning rate of the head.
  """
  config.batch_size = 128
  config.scenario.num_tasks = arg.tasks
  config.scenario.order_seed = common.order_seed(arg.order)
  config.preprocess.area = (0.08, 1.0)
  config.preprocess.aspect = (3 / 4, 4 / 3)
  config.model.gelu = "erf"
  config.model.lora = common.key_value_lora(rank)
  common.lora_optimizer(config, lr=5e-4, head_lr=head_lr)


def get_config(arg=None):
  """Returns the released settings, but images of prototypes are not augmented.

  The prototypes are means over training images.
  """
  arg = common.parse_arg(arg, tasks=10, order="1993")
  config = base.get_config()
  config.name = "cifar100_lora_sub"
  config.epochs = 20
  config.dataset = common.tfds("cifar100")
  config.preprocess.resize = 224
  adapt(config, arg, rank=10, head_lr=2e-3)
  config.method = common.method(
    "lora_sub", unit_norm=True, triplet=0.05, margin=1.0
  )
  return common.finish(config, arg)
