"""Every key of every run, with its default."""

import ml_collections
from ml_collections import config_dict

from configs import options

# What trains a head alone, as optimizer.groups.
HEAD_GROUPS = (("head", r"head/.*"), ("backbone", r".*"))


def get_config() -> ml_collections.ConfigDict:
  """Returns the defaults; a config file changes what differs."""
  return ml_collections.ConfigDict(
    {
      # Names the run in tables and results.
      "name": "",
      # Of data order, augmentation, dropout and fresh parameters.
      "seed": 42,
      # Images of each stream in a step, over all devices of all processes.
      "batch_size": 128,
      # Images in a step on each device along the batch. Where it is given,
      # batch_size becomes this times their number, whatever it was.
      "per_device_batch_size": config_dict.placeholder(int),
      # Passes over a stage's data.
      "epochs": 5,
      # Share of the training images that takes the place of the test images,
      # class by class, to tune on; 0 tests on the test images.
      "holdout": 0.0,
      # Draws that share, of the weights that `pretrain` makes, too.
      "holdout_seed": 42,
      # Pretrained weights, .npz or .safetensors.
      "init_checkpoint": config_dict.placeholder(str),
      # The file's head: "fresh" drops it, "keep" goes on with it.
      "init_head": "fresh",
      # File with the names of the kept head's classes, one a line, in order;
      # then the columns of the data's classes are picked by name.
      "init_head_names": config_dict.placeholder(str),
      # Config whose run makes those weights on first use, kept in the cache.
      "pretrain": config_dict.placeholder(str),
      # Whether a run may start from random weights.
      "random_init": False,
      # Whether the model's final weights are written to the workdir's folder
      # export, adapters merged. What a method keeps in memory is not in it.
      "export": False,
      # Row of SCENARIOS, and its options.
      "scenario": {
        "name": "class_incremental",
        "num_tasks": 10,
        # Seed of the class order; None: natural order.
        "order_seed": config_dict.placeholder(int),
        "reverse": False,
        # Whether a prediction may name the classes of its task only.
        "task_incremental": False,
      },
      # Row of DATASETS, and its options.
      "dataset": {"name": "synthetic"},
      # Pairs of faces that are measured at the end: file of pairs, folder of
      # the images, folds (libml/problems/verification.py); None: none.
      "verification": {
        "pairs": config_dict.placeholder(str),
        "root": config_dict.placeholder(str),
        "folds": 10,
      },
      # What a model still knows of what it forgot, after "none", the "last" or
      # "all" requests.
      "audit": {
        "stages": "none",
        # Images a class to learn it again from, steps at most, and the rate.
        "shots": 16,
        "max_steps": 100,
        "lr": 1e-3,
        # Workdir of a finished run of the method "retrain" on all images.
        "retrained": config_dict.placeholder(str),
        "seed": 0,
      },
      # Fields of Preprocess; the size is the model's.
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
        # (operations, magnitude in 0 to 10) of RandAugment; None: off.
        "randaugment": config_dict.placeholder(tuple),
        # Brightness, contrast, saturation (0 to 1), hue (to 0.5); None: off.
        "color_jitter": config_dict.placeholder(tuple),
        # Probability of a grey image.
        "grayscale": 0.0,
        # Probability of erasing a box, its part of the image, and what
        # overwrites it: "noise" or "mean".
        "erase": 0.0,
        "erase_area": (0.02, 0.33),
        "erase_fill": "noise",
      },
      # Beta parameters; 0: off. Both above 0: each image takes one of them.
      "mixing": {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0},
      # Row of PROBLEMS.
      "problem": {"name": "classification"},
      # Row of MODELS, and its options; the classes come from the data.
      "model": {
        "name": "vit",
        "variant": "ViT-B_16",
        "image_size": 224,
        "gelu": "tanh",
        "classifier": "token",
        "norm_pre_logits": False,
        "temperature": 1.0,
        # Of the norms in the blocks.
        "block_epsilon": 1e-6,
        # Low-rank adapters: {"layers": pattern of module paths, "rank",
        # "alpha"}; None: none.
        "lora": None,
        # Of the computation; parameters stay float32.
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
      # Row of METHODS, and its options.
      "method": options.method("finetune"),
      "optimizer": {
        # (name, pattern) in order; each name has its settings below. The
        # settings None freeze a group.
        "groups": HEAD_GROUPS,
        # Learning rates are for this many images a step; None: as they stand.
        "lr_batch_size": config_dict.placeholder(int),
        # Largest norm of a gradient; inf: any.
        "clip_norm": 1.0,
        # "trainable", or "all": the norm of frozen gradients counts, too.
        "clip_scope": "trainable",
        # 0.5 * l2 * sum of squares of all matrices, as a gradient.
        "l2": 0.0,
        "head": {"name": "adam", "lr": 1e-3},
        "backbone": None,
      },
      # Devices along the batch (-1: all that are left) and the model.
      "mesh": {"data": -1, "model": 1},
      # (pattern, "replicate" | "fsdp" | "fsdp:BYTES" | axis names) for the
      # state's leaves; fsdp cuts those of 4 MiB, or of BYTES, and more.
      "sharding": ((r".*", "replicate"),),
      # Steps between points of the training curves.
      "log_every": 20,
      # Inside a stage; each stage's end is a checkpoint anyway.
      "checkpoint": {"every_steps": 500, "keep": 2},
    }
  )
