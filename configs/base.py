"""All keys of a config that every run has, with their defaults."""

import ml_collections
from ml_collections import config_dict

from configs import options

# Parameter groups that separate the head from all other parameters.
HEAD_GROUPS = (("head", r"head/.*"), ("backbone", r".*"))


def get_config() -> ml_collections.ConfigDict:
  """Returns the defaults; a config file starts from them."""
  return ml_collections.ConfigDict(
    {
      # Names the run in tables and results.
      "name": "",
      # Seed of data order, augmentation, dropout and drawn parameters.
      "seed": 42,
      # Images of each stream in a step, over all devices of all processes.
      "batch_size": 128,
      # Images in a step on each device along the batch. If given, batch_size is
      # replaced by this times the number of these devices.
      "per_device_batch_size": config_dict.placeholder(int),
      # Passes over a stage's data.
      "epochs": 5,
      # To tune: share of each class's training images that is held out and
      # replaces the test images; 0: the test images are used.
      "holdout": 0.0,
      # Seed of the held-out images, also in the run of `pretrain`.
      "holdout_seed": 42,
      # Pretrained weights, .npz or .safetensors.
      "init_checkpoint": config_dict.placeholder(str),
      # The file's head: "fresh" replaces it by zeros, "keep" loads it.
      "init_head": "fresh",
      # File with the class names of the kept head, one per line, in its
      # columns' order. The columns of the data's classes are picked by name.
      "init_head_names": config_dict.placeholder(str),
      # Config whose run makes the weights on first use and caches them.
      "pretrain": config_dict.placeholder(str),
      # Whether a run may start from random weights.
      "random_init": False,
      # Whether the final weights are written to WORKDIR/export, with adapters
      # merged and without the method's memory, such as prototypes.
      "export": False,
      # Key of SCENARIOS, and its options.
      "scenario": {
        "name": "class_incremental",
        "num_tasks": 10,
        # Seed of the class order; None: natural order.
        "order_seed": config_dict.placeholder(int),
        "reverse": False,
        # Whether predictions on a task's test images are limited to the classes
        # of that task.
        "task_incremental": False,
      },
      # Key of DATASETS, and its options.
      "dataset": {"name": "synthetic"},
      # Face verification at the end (libml/problems/verification.py): file of
      # pairs, folder of the images, number of folds; None: no verification.
      "verification": {
        "pairs": config_dict.placeholder(str),
        "root": config_dict.placeholder(str),
        "folds": 10,
      },
      # Audits of what a model still knows of forgotten classes, after "none",
      # the "last" or "all" requests.
      "audit": {
        "stages": "none",
        # To relearn forgotten classes: images of each class, largest number of
        # steps, learning rate.
        "shots": 16,
        "max_steps": 100,
        "lr": 1e-3,
        # Workdir of a finished run of the method "retrain" on all images.
        "retrained": config_dict.placeholder(str),
        "seed": 0,
      },
      # Fields of Preprocess (libml/images/preprocess.py); the image size is the
      # model's.
      "preprocess": {
        "train": "random_resized_crop",
        "eval": "center_crop",
        "resize": config_dict.placeholder(int),
        "mean": config_dict.placeholder(tuple),
        "std": config_dict.placeholder(tuple),
        "flip": 0.5,
        "area": (0.05, 1.0),
        "aspect": (0.75, 1.33),
        "padding": 4,
        "antialias": False,
        # RandAugment: (number of operations, magnitude 0 to 10); None: off.
        "randaugment": config_dict.placeholder(tuple),
        # Strengths of brightness, contrast, saturation (0 to 1 each) and hue (0
        # to 0.5); None: off.
        "color_jitter": config_dict.placeholder(tuple),
        # Probability of turning an image grey.
        "grayscale": 0.0,
        # Probability of erasing a box, range of its share of the image, and its
        # new content: "noise" or "mean".
        "erase": 0.0,
        "erase_area": (0.02, 0.33),
        "erase_fill": "noise",
      },
      # Parameters of mixup's and cutmix's Beta distributions; 0: off. If both
      # are above 0, each image gets one of the two.
      "mixing": {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0},
      # Key of PROBLEMS.
      "problem": {"name": "classification"},
      # Key of MODELS, and its options; num_classes comes from the data.
      "model": {
        "name": "vit",
        "variant": "ViT-B_16",
        "image_size": 224,
        "gelu": "tanh",
        "classifier": "token",
        "norm_pre_logits": False,
        "temperature": 1.0,
        # Added to the variance in the blocks' norms.
        "block_epsilon": 1e-6,
        # LoRA adapters: {"layers": pattern of module paths, "rank", "alpha"};
        # None: no adapters.
        "lora": None,
        # Type of the computation; parameters stay float32.
        "dtype": "float32",
      },
      # Exemplars of earlier stages: the fields of Rehearsal
      # (libml/train/rehearsal.py).
      "rehearsal": {
        "per_class": 0,
        "include_current": False,
        "replay": True,
        "mask": "seen",
        "train": True,
        "review_epochs": 0,
        "review_last_only": False,
      },
      # Key of METHODS, and its options.
      "method": options.method("finetune"),
      "optimizer": {
        # Parameter groups: (name, pattern of parameters); the first match
        # counts. Each name has its settings below; None freezes the group.
        "groups": HEAD_GROUPS,
        # Batch size for which learning rates are given; they are scaled to
        # batch_size. None: not scaled.
        "lr_batch_size": config_dict.placeholder(int),
        # Largest norm of the gradient; inf: no clipping.
        "clip_norm": 1.0,
        # Parameters whose gradients enter that norm: "trainable" or "all".
        "clip_scope": "trainable",
        # Adds the gradient of 0.5 * l2 * (sum of squares of all matrices).
        "l2": 0.0,
        "head": {"name": "adam", "lr": 1e-3},
        "backbone": None,
      },
      # Devices along the batch (-1: all others) and along the model.
      "mesh": {"data": -1, "model": 1},
      # (pattern, "replicate" | "fsdp" | "fsdp:BYTES" | axis names) for leaves
      # of the state; fsdp shards leaves of at least 4 MiB, or BYTES.
      "sharding": ((r".*", "replicate"),),
      # Steps between points of the training curves.
      "log_every": 20,
      # Checkpoints inside a stage; the end of a stage always writes one.
      "checkpoint": {"every_steps": 500, "keep": 2},
    }
  )
