"""Baselines of forgetting on ImageNet100; compare with imagenet100_gs_lora.py.

  python main.py --workdir ./ewc \
      --my_config configs/imagenet100_baselines.py:folder=DIR,names=FILE \
      --my_config.init_checkpoint=ViT.safetensors

":method=" is one of BASELINES in configs/baselines.py, by default ewc; the
other arguments are those of configs/imagenet100_gs_lora.py. For methods in the
GS-LoRA code the values are those of its authors' scripts; LIRF, which they do
not have on ImageNet, uses their values for faces. Published figures (table 4):
after the first request EWC recognizes 78.55 % of the classes to retain and
0.10 % of the forgotten (H 82.69), after the fourth 89.50 % and 2.00 %
(H 86.93). By mistake the authors' Retrain starts from pretrained attention
weights; here it starts from random weights.
"""

from typing import Any

from configs import baselines
from configs import casia100_baselines
from configs import common
from configs import imagenet100_gs_lora

# Options that differ from the scripts for faces.
OPTIONS: dict[str, dict[str, Any]] = {
  "l2": {"strength": 0.05},
  "ewc": {"strength": 3.0},
  "mas": {"strength": 0.002},
  "der_plus": {"distill": 0.01, "retain": 0.5},
  "fdr": {"distill": 40.0},
  "scrub": {"retain": 20.0},
  "scrub_s": {"retain": 10.0, "smoothing": 0.05},
}
# Peak learning rates; that of DER++ is not known, DER's is used.
RATES = {"der": 1e-4, "der_plus": 1e-4}
LOWEST = {"fdr": 1e-8}


def get_config(arg=None):
  """Returns the published run or, without ":parity", our version of it."""
  arg = common.parse_arg(
    arg,
    method="ewc",
    folder="imagenet100",
    others="",
    names="",
    tune=False,
    parity=False,
  )
  config = imagenet100_gs_lora.scenario(arg)
  config.name = common.title(arg.method, arg, "parity")
  long_epochs = arg.method in casia100_baselines.LONG_EPOCHS
  config.epochs = 10 if long_epochs else 100
  baselines.adapt(
    config,
    arg,
    lr=RATES.get(arg.method),
    min_lr=LOWEST.get(arg.method, 1e-5),
    **OPTIONS.get(arg.method, {}),
  )
  return common.finish(config, arg)
