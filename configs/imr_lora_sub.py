"""LoRA-Sub-DRS on Split ImageNet-R, 10 tasks of 20 classes.

Liu and Chang, CVPR 2025, 5 seeds: avg_acc 74.74, curve_mean_acc 81.16; 20 tasks
of 10: 74.80, 80.69. LibContinual's rerun: 75.05, 80.35; 73.62, 81.21. The two
divided the images differently.

  python main.py --my_config configs/imr_lora_sub.py --workdir ./imr \
      --my_config.init_checkpoint=B_16-i21k-300ep.npz

":tasks=20" makes 20 tasks, ":tasks=5" makes 5. ":tune" and
":train_list=FILE,test_list=FILE" as in configs/imr_dualprompt.py; weights and
":order=" as in configs/cifar100_lora_sub.py.
"""

from configs import base
from configs import cifar100_lora_sub
from configs import common
from configs import imr_dualprompt


def get_config(arg=None):
  """Returns the released settings; the first task has 40 epochs."""
  arg = common.parse_arg(
    arg, tasks=10, order="1993", tune=False, train_list="", test_list=""
  )
  config = base.get_config()
  config.name = "imr_lora_sub"
  config.epochs = 50
  imr_dualprompt.stream(config, arg)
  config.preprocess.resize = 256
  config.preprocess.antialias = True
  cifar100_lora_sub.adapt(config, arg, rank=10, head_lr=5e-4)
  config.method = common.method(
    "lora_sub", unit_norm=True, triplet=0.2, margin=2.0, first_epochs=40
  )
  return common.finish(config, arg)
