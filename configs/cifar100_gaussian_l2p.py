"""L2P on task-free CIFAR-100: classes come and go in 200 overlapping stages.

Wang et al., CVPR 2022, section 5.2; schedule of Shanahan et al., 2021.

  python main.py --my_config configs/cifar100_gaussian_l2p.py \
      --workdir ./gaussian --my_config.init_checkpoint=ViT-B_16.npz

The stream is the paper's: 1000 batches, 5 in each stage, and stages of 4 to 19
classes. ":shipped" is the stream of the released config: stages of 29 to 66
classes, 5 epochs over all their images, 196,420 steps in total.
"""

from configs import base
from configs import common


def get_config(arg=None):
  """Returns the paper's stream with the released code's model: 8 x 16 images.

  The optimizer's moments and the prompts are kept from stage to stage. Training
  masks the classes that a stage does not have, as in the released code.
  """
  arg = common.parse_arg(arg, shipped=False)
  config = base.get_config()
  config.name = "cifar100_gaussian_l2p"
  config.batch_size = 128
  config.epochs = 1
  config.scenario = {
    "name": "gaussian",
    "num_stages": 200,
    # Steps of an epoch; None: one pass over the images of a stage's classes.
    "steps_per_stage": 5,
    "width": 50.0,
    "measure_every": 10,
    "schedule_seed": 42,
    "legacy_threefry": False,
  }
  config.dataset = common.tfds("cifar100")
  config.preprocess.train = "reference"
  config.preprocess.eval = "reference"
  config.preprocess.resize = 256
  config.model.classifier = "prompt"
  config.method = common.method("l2p", restart_optimizer=False)
  common.prompt_optimizer(config, lr=0.03)
  config.optimizer.lr_batch_size = 256
  if arg.shipped:
    config.epochs = 5
    config.scenario.steps_per_stage = None
    config.scenario.legacy_threefry = True
  return common.finish(config, arg)
