"""L2P on CORe50: 50 objects in 8 sessions, tested on 3 others.

Wang et al., CVPR 2022, table 3; a user's run of the released settings ends at
77.91 (github.com/google-research/l2p/issues/33).

  python main.py --my_config configs/core50_l2p.py --workdir ./core50 \
      --my_config.init_checkpoint=ViT-B_16.npz

The released code trains all weights with SGD and tests on randomly cropped
images; that accuracy is reported as "augmented", beside the accuracy on test
images without augmentation. It counts an epoch's steps from 99 % of a session's
images, here all of them count. ":paper" freezes the backbone and uses the
paper's values.
"""

from configs import base
from configs import common


def get_config(arg=None):
  """Returns the released code's settings: 8 devices of 16 images."""
  arg = common.parse_arg(arg, paper=False)
  config = base.get_config()
  config.name = "core50_l2p"
  config.batch_size = 128
  config.epochs = 5
  config.scenario = {"name": "domain_incremental", "augmented_test": True}
  config.dataset = common.tfds("core50")
  config.preprocess.train = "reference"
  config.preprocess.eval = "reference"
  config.preprocess.resize = 256
  config.model.classifier = "prompt"
  config.method = common.method("l2p", length=5, mask_classes=False)
  common.prompt_optimizer(config, lr=0.03)
  config.optimizer.lr_batch_size = 256
  if arg.paper:
    config.method.update(top_k=5, key_loss=0.5)
    config.optimizer.lr_batch_size = None
  else:
    for group, _ in config.optimizer.groups:
      config.optimizer[group] = common.sgd(0.03)
  return common.finish(config, arg)
