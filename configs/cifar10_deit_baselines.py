"""Baselines of forgetting on CIFAR-10; compare with cifar10_deit_gs_lora.py.

  python main.py --my_config configs/cifar10_deit_baselines.py:method=ewc \
      --workdir ./ewc

":method=" is one of BASELINES in configs/baselines.py; ":shots=4", ":missing",
":data=", ":size=" and ":tune" are those of configs/cifar10_deit_gs_lora.py.
"""

from typing import Any

from configs import baselines
from configs import cifar10_deit_gs_lora
from configs import cifar10_deit_l2p
from configs import common

# Values that differ from the authors' for faces: the rates are theirs for
# ImageNet, the others those of configs/digits_baselines.py. Nothing was tuned
# on this data set.
SETTINGS: dict[str, dict[str, Any]] = {
  "der": {"lr": 1e-4},
  "der_plus": {"lr": 1e-4},
  "fdr": {"lr": 1e-4, "distill": 2.0},
  "scrub": {"epochs": 2},
  "scrub_s": {"epochs": 2, "smoothing": 0.01},
}


def get_config(arg=None):
  """Returns a baseline on the requests of configs/cifar10_deit_gs_lora.py."""
  arg = common.parse_arg(
    arg,
    method="ewc",
    shots=0,
    missing=False,
    tune=False,
    data=cifar10_deit_l2p.DATA,
    size=112,
  )
  config = cifar10_deit_gs_lora.scenario(arg)
  config.name = common.title(arg.method, arg, "shots", "missing")
  settings = {**SETTINGS.get(arg.method, {})}
  config.epochs = settings.pop("epochs", config.epochs)
  baselines.adapt(config, arg, **settings)
  return common.finish(config, arg)
