"""GS-LoRA on CIFAR-10 with DeiT-Tiny: four requests of two classes.

  python main.py --my_config configs/cifar10_deit_gs_lora.py --workdir ./forget

configs/cifar10_deit_pretrain.py makes the classifier on first use. ":plus" is
GS-LoRA++; ":subgradient" puts the group lasso into the loss, as the released
code does; ":shots=4" uses four images of each class; ":missing" uses no images
of one class to retain; ":measure" trains nothing and measures
--my_config.init_checkpoint; ":data=", ":size=" and ":tune" as in
configs/cifar10_deit_l2p.py.
"""

from configs import base
from configs import cifar10_deit_l2p
from configs import common
from configs import digits_gs_lora


def scenario(arg):
  """Returns a config with the requests and the network, without a method."""
  config = base.get_config()
  cifar10_deit_l2p.stream(config, arg)
  config.batch_size = 4 if arg.shots else 16
  config.epochs = 8
  tune = ",tune" if arg.tune else ""
  config.init_checkpoint = None
  config.pretrain = (
    f"cifar10_deit_pretrain:data={arg.data},size={arg.size}{tune}"
  )
  config.init_head = "keep"
  config.export = True
  config.scenario = common.forgetting(
    classes_per_request=2,
    missing=int(arg.missing),
    shots=arg.shots or None,
  )
  config.preprocess.train = "none"
  # At the default rate one step ruins DeiT-Tiny; chosen on held-out images.
  config.audit.lr = 1e-4
  return config


def get_config(arg=None):
  """Returns four requests, from truck and ship to bird and cat."""
  arg = common.parse_arg(
    arg,
    plus=False,
    subgradient=False,
    shots=0,
    missing=False,
    measure=False,
    tune=False,
    data=cifar10_deit_l2p.DATA,
    size=112,
  )
  config = scenario(arg)
  config.name = common.title(
    "cifar10_deit_gs_lora",
    arg,
    "plus",
    "subgradient",
    "shots",
    "missing",
    "measure",
  )
  digits_gs_lora.adapt(config, arg, alpha=0.1, alpha_epoch=3)
  return common.finish(config, arg)
