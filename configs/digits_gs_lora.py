"""GS-LoRA on scikit-learn's digits: forget 8 and 9, then 6 and 7.

  python main.py --my_config configs/digits_gs_lora.py --workdir ./forget

Nothing is downloaded: configs/digits_pretrain.py makes the classifier on first
use. ":plus" is GS-LoRA++; ":subgradient" puts the group lasso into the loss, as
the released code does; ":shots=4" uses four images of each class; ":missing"
uses no images of one digit to retain; ":requests=4" makes four requests of two
digits; ":measure" trains nothing and measures --my_config.init_checkpoint;
":tune" measures on held-out training images, as for choosing the settings.
"""

from configs import base
from configs import common
from configs import glyphs_pretrain


def scenario(arg):
  """Returns a config with the requests and the network, without a method."""
  config = base.get_config()
  config.batch_size = 4 if arg.shots else 16
  config.epochs = 15
  config.pretrain = "digits_pretrain:tune" if arg.tune else "digits_pretrain"
  config.init_head = "keep"
  config.export = True
  config.holdout = 0.25 if arg.tune else 0.0
  config.scenario = common.forgetting(
    num_requests=arg.requests,
    classes_per_request=2,
    missing=int(arg.missing),
    ratio=0.5,
    shots=arg.shots or None,
  )
  config.dataset = {"name": "digits"}
  config.preprocess.train = "none"
  config.preprocess.eval = "native"
  glyphs_pretrain.model(config)
  return config


def adapt(config, arg, **lasso):
  """Gives a config the adapters, the method and its optimizer.

  Args:
    config: Changed in place.
    arg: "plus", "subgradient" and "measure".
    **lasso: Fields of the method that set the group lasso.
  """
  config.model.lora = common.ffn_lora()
  options = {"bound": 30.0, "beta": (0.5,) * 4, **lasso}
  if arg.plus:
    options |= {"proto_forget": (0.01,) * 4, "proto_retain": (0.0,) * 4}
  config.method = common.method(
    "gs_lora_plus" if arg.plus else "gs_lora",
    subgradient=arg.subgradient,
    **options,
  )
  common.gs_lora_optimizer(config, lr=1e-2)
  if arg.measure:
    common.measure(config)


def get_config(arg=None):
  """Returns requests of two digits each."""
  arg = common.parse_arg(
    arg,
    plus=False,
    subgradient=False,
    shots=0,
    missing=False,
    requests=2,
    measure=False,
    tune=False,
  )
  config = scenario(arg)
  config.name = common.title(
    "digits_gs_lora", arg, "plus", "subgradient", "shots", "missing", "measure"
  )
  adapt(config, arg, alpha=0.05, alpha_epoch=5)
  return common.finish(config, arg)
