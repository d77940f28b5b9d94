"""Parts that config files share."""

from typing import Any

import ml_collections
from ml_collections import config_dict

from configs.arguments import order_seed as order_seed
from configs.arguments import parse_arg as parse_arg
from configs.arguments import title as title
from configs.base import HEAD_GROUPS
from configs.options import method as method
from configs.options import scenario as scenario
from configs.smoke import smoke as smoke
from libml import registry

# The channel statistics with which most ImageNet weights were trained.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Of the parameters that L2P and DualPrompt add.
PROMPTS = r"prompt_pool/.*|prefix|reweight"
LORA_GROUPS = (("lora", r".*/lora_[ab]"), *HEAD_GROUPS)


def tfds(name: str) -> dict[str, Any]:
  """Returns a TFDS source; data_dir None is TFDS's own folder."""
  return {"name": name, "data_dir": config_dict.placeholder(str)}


def tfds_collection(*names: str) -> dict[str, Any]:
  """Returns TFDS sources in order; the data_dir of one is that of all."""
  data_dir = config_dict.placeholder(str)
  return {
    "name": "collection",
    "order": names,
    # Images of each class to keep at most; None: all.
    "per_class": config_dict.placeholder(int),
    **{name: {"name": name, "data_dir": data_dir} for name in names},
  }


def forgetting(**changes: Any) -> dict[str, Any]:
  """Returns the options of requests to forget: four, of 20 classes each."""
  sizes = {"num_requests": 4, "classes_per_request": 20}
  return scenario("forgetting", **{**sizes, **changes})


def ffn_lora(rank: int = 8) -> dict[str, Any]:
  """Returns GS-LoRA's adapters of scale 1 / rank on both layers of the MLPs."""
  layers = r".*/MlpBlock_0/Dense_[01]"
  return {"layers": layers, "rank": rank, "alpha": 1.0}


def key_value_lora(rank: int) -> dict[str, Any]:
  """Returns adapters of scale 1 on the keys and values of all blocks."""
  return {
    "layers": r".*/(key|value)",
    "rank": rank,
    "alpha": config_dict.placeholder(float),
  }


def adam(lr: float, **changes: Any) -> dict[str, Any]:
  """Returns Adam's settings for one parameter group."""
  options = {
    "name": "adam",
    "lr": lr,
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "min_lr": 0.0,
    "weight_decay": 0.0,
    "normalize_columns": False,
    "l2": 0.0,
    # What a method's subspace confines: "update", "gradient", None: nothing.
    "project": config_dict.placeholder(str),
  }
  return {**options, **changes}


def sgd(lr: float, **changes: Any) -> dict[str, Any]:
  """Returns the settings of SGD with Nesterov momentum for one group."""
  options = {**adam(lr), "name": "sgd", "momentum": 0.9, "nesterov": True}
  return {**options, **changes}


def proximal_adam(lr: float, **changes: Any) -> dict[str, Any]:
  """Returns the settings of AdamW with the group lasso's proximal step."""
  options = {
    "name": "proximal_adam",
    "lr": lr,
    "schedule": "timm_cosine",
    "warmup_epochs": 0.0,
    "min_lr": 1e-5,
    "weight_decay": 0.05,
  }
  return {**options, **changes}


def gs_lora_optimizer(
  config: ml_collections.ConfigDict, lr: float, **changes: Any
) -> None:
  """Trains the adapters alone, unclipped, by the method's kind of step."""
  config.optimizer.groups = LORA_GROUPS
  settings = proximal_adam(lr, **changes)
  if config.method.subgradient:
    settings["name"] = "adam"
  config.optimizer.lora = settings
  config.optimizer.head = None
  config.optimizer.backbone = None
  config.optimizer.clip_norm = float("inf")


def classifier(config: ml_collections.ConfigDict) -> None:
  """Trains all classes at once and exports them, for runs that start there."""
  config.export = True
  config.scenario.num_tasks = 1
  config.method = method("finetune")


def measure(config: ml_collections.ConfigDict) -> None:
  """Trains nothing: measures the given weights in the config's scenario."""
  config.method = method("frozen")
  config.model.lora = None
  config.optimizer.groups = HEAD_GROUPS
  del config.optimizer["lora"]
  config.export = False


def prompt_optimizer(
  config: ml_collections.ConfigDict, lr: float, prompts: str = PROMPTS
) -> None:
  """Trains prompts and head at one rate and freezes the rest.

  Args:
    config: Changed in place.
    lr: The rate.
    prompts: Pattern of the parameters that the method adds.
  """
  config.optimizer.groups = (("prompt", prompts), *HEAD_GROUPS)
  config.optimizer.prompt = adam(lr)
  config.optimizer.head = adam(lr)
  config.optimizer.backbone = None


def lora_optimizer(
  config: ml_collections.ConfigDict, lr: float, head_lr: float
) -> None:
  """Trains adapters and head with LoRA-Sub-DRS's optimizer, unclipped."""
  config.optimizer.groups = LORA_GROUPS
  adam_hat = {"schedule": "late_quarter_cosine", "epsilon_hat": True}
  config.optimizer.lora = adam(lr, project="update", **adam_hat)
  config.optimizer.head = adam(head_lr, **adam_hat)
  config.optimizer.backbone = None
  config.optimizer.clip_norm = float("inf")


# The original's rehearsal settings, under the names of what its flags do. It
# ships none: images a class and review epochs are those of its paper's largest
# buffer and its smallest possible review. "replay" is ours: an exemplar's loss
# sees the classes up to its stage.
REHEARSAL = {
  "none": {},
  "replay": {"per_class": 50},
  "replay_no_mask": {
    "per_class": 50,
    "include_current": True,
    "mask": "none",
  },
  "replay_reverse_mask": {"per_class": 50, "mask": "old"},
  "review_trick": {
    "per_class": 50,
    "replay": False,
    "mask": "none",
    "review_epochs": 5,
  },
  "review_last_only": {
    "per_class": 50,
    "replay": False,
    "mask": "none",
    "review_epochs": 5,
    "review_last_only": True,
  },
  "no_train": {
    "per_class": 50,
    "train": False,
    "mask": "none",
    "review_epochs": 5,
  },
}


def rehearse(config: ml_collections.ConfigDict, preset: str) -> None:
  """Turns on a row of REHEARSAL.

  Raises:
    ValueError: No such row.
  """
  if preset not in REHEARSAL:
    raise ValueError(
      f"rehearsal={preset!r} must be one of {sorted(REHEARSAL)}."
    )
  config.rehearsal.update(REHEARSAL[preset])


# Reference points beside the prompt methods: the row of METHODS, what differs
# from its defaults, and the learning rate of the backbone as a share of the
# head's (0: frozen).
REFERENCES: dict[str, tuple[str, dict[str, Any], float]] = {
  "finetune": ("finetune", {}, 1.0),
  "head": ("finetune", {}, 0.0),
  "masked_head": ("finetune", {"mask_classes": True}, 0.0),
  "lora": ("finetune", {"mask_classes": True}, 0.0),
  "nearest_mean": ("nearest_mean", {}, 0.0),
  # The paper projects to 10,000; these streams are small.
  "ranpac": ("ranpac", {"projection_dim": 2000}, 0.0),
  "inflora": ("inflora", {}, 0.0),
  "joint": ("joint", {}, 1.0),
}

# Those that train adapters, and which parameters of them.
ADAPTED = {"lora": r".*/lora_[ab]", "inflora": r".*/lora_b"}


def reference(
  config: ml_collections.ConfigDict,
  name: str,
  *,
  head_lr: float,
  body_lr: float,
  lora_lrs: dict[str, float],
) -> None:
  """Turns a prompt method's config into one of the reference points.

  Args:
    config: Changed in place; data, scenario and model stay.
    name: "finetune" (all weights, one task after the other), "head" (only
      the head), "masked_head" (the same, other tasks' classes masked in
      training), "lora" (the same with adapters), "nearest_mean", "ranpac",
      "inflora" or "joint" (all weights, all data so far).
    head_lr: Learning rate of the head.
    body_lr: Learning rate of the backbone, where it is trained.
    lora_lrs: Learning rate of adapters, for each method that has some.

  Raises:
    ValueError: Another method.
  """
  if name not in REFERENCES:
    raise ValueError(
      f"Unknown method={name!r}. {registry.nearest(name, REFERENCES)}"
    )
  row, changes, trained = REFERENCES[name]
  config.name = name
  config.model.classifier = "token"
  config.method = method(row, **changes)
  config.optimizer.groups = HEAD_GROUPS
  config.optimizer.head = adam(head_lr)
  config.optimizer.backbone = adam(body_lr * trained) if trained else None
  if name in ADAPTED:
    config.model.lora = key_value_lora(rank=10)
    config.optimizer.groups = (
      ("lora", ADAPTED[name]),
      *config.optimizer.groups,
    )
    config.optimizer.lora = adam(lora_lrs[name])


def finish(
  config: ml_collections.ConfigDict, arg: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
  """Returns the config, shrunk if the argument says "smoke"."""
  return smoke(config) if arg.smoke else config
