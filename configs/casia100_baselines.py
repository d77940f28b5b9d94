"""Baselines of forgetting people, to compare with configs/casia100_gs_lora.py.

  python main.py --workdir ./ewc \
      --my_config configs/casia100_baselines.py:method=ewc,folder=DIR \
      --my_config.init_checkpoint=./faces/export/params.npz

":method=" is one of BASELINES in configs/baselines.py; the other arguments are
those of configs/casia100_gs_lora.py. For methods in the GS-LoRA code (l2, ewc,
mas, lwf, der, der_plus, fdr, scrub, scrub_s, lirf, retrain) the values are
those of its authors' scripts for four requests or for one. No other values are
known for ":shots=" and ":missing", which use the same. Published figures
(tables 2, 3 and 5): after the first of four requests EWC recognizes 61.95 % of
the people to retain and 0.00 % of the forgotten (H 67.71), after the fourth
62.14 % and 0.00 % (H 68.02). ":parity" does as the released code does.
"""

from configs import baselines
from configs import casia100_gs_lora
from configs import common

# Options that differ in the scripts for one request.
SINGLE = {
  "l2": {"strength": 0.05},
  "mas": {"strength": 5.0},
  "der_plus": {"distill": 0.05},
  "scrub_s": {"smoothing": 0.05},
}
# Options that differ for one request of 5 or 10 people, and of 50 or 90.
FEW = {"lwf": {"retain": 2.0}}
MANY = {"scrub": {"retain": 2.0}, "scrub_s": {"retain": 2.0}}
# Methods whose epoch has ten passes over the images.
LONG_EPOCHS = ("scrub", "scrub_s")


def changes(arg):
  """Returns the options of a method that differ in the chosen scenario."""
  if not arg.single:
    return {}
  size = FEW if arg.single <= 10 else MANY
  return {**SINGLE.get(arg.method, {}), **size.get(arg.method, {})}


def get_config(arg=None):
  """Returns a published run or, without ":parity", our version of it."""
  arg = common.parse_arg(
    arg,
    method="ewc",
    folder="casia100",
    depth=6,
    head="cosface",
    tune=False,
    single=0,
    shots=0,
    missing=False,
    parity=False,
  )
  config = casia100_gs_lora.scenario(arg)
  config.name = common.title(
    arg.method, arg, "single", "shots", "missing", "parity"
  )
  config.epochs = 10 if arg.method in LONG_EPOCHS else 100
  baselines.adapt(config, arg, min_lr=1e-5, blocks=arg.depth, **changes(arg))
  return common.finish(config, arg)
