"""CODA-Prompt on Split CIFAR-100, 10 tasks of 10 classes.

Smith et al., CVPR 2023: avg_acc 86.25.

  python main.py --my_config configs/cifar100_coda_prompt.py \
      --workdir ./coda_prompt --my_config.init_checkpoint=B_16-in1k.npz

The weights are AugReg's, fine-tuned on ImageNet-1k, storage.googleapis.com/
vit_models/augreg/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0--
imagenet2012-steps_20k-lr_0.01-res_224.npz (timm's vit_base_patch16_224
.augreg_in21k_ft_in1k). ":order=natural" keeps the order of classes, which is
the authors' first seed; a number draws one by NumPy's permutation, which is
not how the authors' further seeds do.
"""

from configs import base
from configs import common


def optimize(config, lr):
  """Trains components and head with the released code's schedule, unclipped."""
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
