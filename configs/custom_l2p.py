"""L2P on your own images.

  python main.py --my_config configs/custom_l2p.py:folder=photos,tasks=5 \
      --workdir ./photos_l2p --my_config.init_checkpoint=ViT-B_16.npz

":folder=DIR" reads DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg,
":npz=FILE" the arrays x_train, y_train, x_test, y_test. The number of tasks
must divide the number of classes; ":tune" tests on a part of the training
images.
"""

from configs import base
from configs import common


def get_config(arg=None):
  """Returns the original's CIFAR-100 prompts with a plain train chain."""
  arg = common.parse_arg(arg, folder="", npz="", tasks=5, tune=False)
  config = base.get_config()
  config.name = "custom_l2p"
  config.batch_size = 16
  config.epochs = 5
  config.holdout = 0.2 if arg.tune else 0.0
  config.scenario.num_tasks = arg.tasks
  config.dataset = {"name": "folder", "root": arg.folder or "photos"}
  if arg.npz:
    config.dataset = {"name": "npz", "path": arg.npz}
  config.model.classifier = "prompt"
  config.method = common.method("l2p")
  common.prompt_optimizer(config, lr=0.003)
  return common.finish(config, arg)
