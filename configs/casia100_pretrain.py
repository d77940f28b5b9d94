"""Face Transformer on CASIA-100: the weights for runs that forget faces.

Schedule and settings are those of GS-LoRA's authors (Zhao et al., CVPR 2024),
whose network of 6 blocks recognizes about 74 % of the test images, measured
with the margin:

  python main.py --my_config configs/casia100_pretrain.py:folder=DIR \
      --workdir ./faces

writes the weights to ./faces/export/params.npz. DIR holds train/PERSON/* and
test/PERSON/*, 112 x 112; people and counts are checked (configs/casia100.py).
":depth=12" and ":depth=18" are the larger networks; ":head=arcface",
":head=sface" and ":head=softmax" are heads other than CosFace. ":tune" tests on
a fifth of the training images. ":pairs=FILE,root=FOLDER" also measures the
final weights on pairs of faces: FILE is like LFW's pairs.txt
(libml/datasets/pairs.py), FOLDER holds the images, 112 x 112.
"""

from configs import base
from configs import casia100
from configs import common

# Blocks -> batch size, peak and lowest learning rate.
SETTINGS = {6: (960, 6e-4, 2e-5), 12: (480, 3e-4, 1e-5), 18: (960, 6e-4, 2e-5)}
SOFTMAX = (1920, 1.2e-3, 2e-5)


def faces(config, arg):
  """Sets images and network in a config.

  Raises:
    ValueError: A depth or head that the authors did not train.
  """
  heads = ("cosface", "arcface", "sface", "softmax")
  if arg.depth not in SETTINGS or arg.head not in heads:
    raise ValueError(
      f"depth={arg.depth} must be one of {sorted(SETTINGS)} and "
      f"head={arg.head!r} one of {heads}."
    )
  config.holdout = 0.2 if arg.tune else 0.0
  config.dataset = {
    "name": "folder",
    "root": arg.folder,
    "expected": casia100.EXPECTED,
  }
  # Pixels are only divided by 255, also in training.
  config.preprocess.train = "none"
  config.preprocess.eval = "native"
  config.model = {
    "name": "face_vit",
    "variant": f"P8S8_{arg.depth}",
    "image_size": 112,
    "head": arg.head,
    "dropout": 0.1,
    "lora": None,
    "dtype": "float32",
  }


def get_config(arg=None):
  """Returns one stage over all people."""
  arg = common.parse_arg(
    arg,
    folder="casia100",
    depth=6,
    head="cosface",
    tune=False,
    pairs="",
    root="",
  )
  config = base.get_config()
  config.name = "casia100_pretrain"
  config.epochs = 1200
  config.random_init = True
  config.export = True
  config.scenario.num_tasks = 1
  faces(config, arg)
  config.verification.pairs = arg.pairs or None
  config.verification.root = arg.root or None
  config.method = common.method("finetune")
  settings = SOFTMAX if arg.head == "softmax" else SETTINGS[arg.depth]
  config.batch_size, lr, min_lr = settings
  adamw = common.adam(
    lr, schedule="timm_cosine", warmup_epochs=10.0, min_lr=min_lr
  )
  decayed = {**adamw, "weight_decay": 0.05}
  # Biases and norms do not decay; positions, class token and head do.
  config.optimizer.groups = (
    ("vectors", r".*(bias|scale)"),
    ("head", r"head/.*"),
    ("backbone", r".*"),
  )
  config.optimizer.vectors = adamw
  config.optimizer.head = decayed
  config.optimizer.backbone = decayed
  config.optimizer.clip_norm = float("inf")
  return common.finish(config, arg)
