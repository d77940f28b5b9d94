"""GS-LoRA on your own images: forget classes that a classifier knows.

  python main.py --workdir ./forget \
      --my_config configs/custom_gs_lora.py:folder=photos,forget=cat+dog \
      --my_config.init_checkpoint=classifier/export/params.npz

":forget=" names the classes of one request, joined by "+"; a class is called
like its folder. Several requests, one after the other:
--my_config.scenario.requests="(('cat', 'dog'), ('ship',))". The weights are a
classifier of exactly the folder's classes, in the order of their names, such as
configs/custom_pretrain.py makes. A tenth of the training images is used;
--my_config.scenario.ratio=0.5 takes half of them, =None all.

":plus", ":subgradient" and ":measure" as in configs/cifar10_deit_gs_lora.py,
":folder=" to ":tune" as in configs/custom_l2p.py. Epochs, bound, beta, alpha
and the rate are those of the former, chosen on held-out images of CIFAR-10;
choose your own with ":tune".
"""

from configs import base
from configs import common
from configs import custom_l2p
from configs import digits_gs_lora


def get_config(arg=None):
  """Returns one request, of the classes that `forget` names."""
  arg = common.parse_arg(
    arg,
    forget="",
    plus=False,
    subgradient=False,
    measure=False,
    **custom_l2p.ARGUMENTS,
  )
  config = base.get_config()
  config.name = common.title("custom_gs_lora", arg, "plus", "measure")
  config.preprocess.mean = config.preprocess.std = (0.5,) * 3
  custom_l2p.images(config, arg)
  config.epochs = 8
  config.init_head = "keep"
  config.export = True
  requests = (tuple(arg.forget.split("+")),) if arg.forget else ()
  config.scenario = common.scenario("forgetting", requests=requests)
  config.preprocess.train = "none"
  digits_gs_lora.adapt(config, arg, alpha=0.1, alpha_epoch=3)
  # At the default rate one step ruins DeiT-Tiny; chosen on held-out images.
  config.audit.lr = 1e-4
  return common.finish(config, arg)
