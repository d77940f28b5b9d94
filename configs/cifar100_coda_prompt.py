"""CODA-Prompt on Split CIFAR-100, 10 tasks of 10 classes.

Smith et al., CVPR 2023: avg_acc 86.25.

  python main.py --my_config configs/cifar100_coda_prompt.py \
      --workdir ./coda_prompt --my_config.init_checkpoint=B_16-in1k.npz

The weights are AugReg's, fine-tuned on ImageNet-1k, storage.googleapis.com/
vit_models/augreg/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0--
imagenet2012-steps_20k-lr_0.01-res_224.npz (timm's vit_base_patch16_224
.augreg_in21k_ft_in1k). ":order=natural", the default, keeps the order of the
classes, as the authors' first seed does. A number is the seed of an order drawn
by NumPy; it differs from the authors' orders with further seeds.
"""

from configs import base
from configs import common


def optimize(config, lr):
  """Trains components and head as the released code does, without clipping."""
  common.prompt_optimizer(config, lr, prompts=r"components/.*")
  for group in ("prompt", "head"):
    config.optimizer[group].schedule = "late_quarter_cosine"
  config.optimizer.clip_norm = float("inf")


def get_config(arg=None):
  """Returns the released code's settings."""
  arg = common.parse_arg(arg, order="natural")
  config = base.get_config()
  config.name = "cifar100_coda_prompt"
  config.batch_size = 128
  config.epochs = 20
  config.scenario.num_tasks = 10
  config.scenario.order_seed = common.order_seed(arg.order)
  config.dataset = common.tfds("cifar100")
  config.preprocess.area = (0.08, 1.0)
  config.preprocess.aspect = (3 / 4, 4 / 3)
  config.preprocess.resize = 224
  config.model.gelu = "erf"
  config.method = common.method("coda_prompt")
  optimize(config, lr=1e-3)
  return common.finish(config, arg)
