"""A small ViT on letters of matplotlib's fonts: the weights for digits runs.

  python main.py --my_config configs/glyphs_pretrain.py --workdir ./glyphs

Takes under 2 minutes on 2 cores and writes ./glyphs/export/params.npz.
"""

from configs import base
from configs import common


def model(config):
  """Sets the small ViT: images of 8 x 8 pixels, patches of 2 x 2."""
  config.model.variant = "small_images"
  config.model.image_size = 8


def get_config(arg=None):
  """Returns one stage over all letters."""
  arg = common.parse_arg(arg)
  config = base.get_config()
  config.name = "glyphs_pretrain"
  config.batch_size = 128
  config.epochs = 6
  config.random_init = True
  config.dataset = {"name": "glyphs", "per_class": 300}
  config.preprocess.train = "none"
  config.preprocess.eval = "native"
  model(config)
  common.classifier(config)
  config.optimizer.head = common.adam(1e-3, schedule="cosine")
  config.optimizer.backbone = common.adam(
    1e-3, schedule="cosine", warmup_epochs=0.5, weight_decay=0.01
  )
  config.log_every = 50
  return common.finish(config, arg)
