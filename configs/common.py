"""Sections and settings that config files share."""

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

# Mean and standard deviation of the channels for most ImageNet weights.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Pattern of the parameters that L2P and DualPrompt add.
PROMPTS = r"prompt_pool/.*|prefix|reweight"
LORA_GROUPS = (("lora", r".*/lora_[ab]"), *HEAD_GROUPS)


def tfds(name: str) -> dict[str, Any]:
  """Returns a TFDS source; data_dir None is TFDS's default folder."""
  return {"name": name, "data_dir": config_dict.placeholder(str)}


def tfds_collection(*names: str) -> dict[str, Any]:
  """Returns several TFDS sources in order, which share their data_dir."""
  data_dir = config_dict.placeholder(str)
  return {
    "name": "collection",
    "order": names,
    # Images of each class to keep at most; None: all.
    "per_class": config_dict.placeholder(int),
    **{name: {"name": name, "data_dir": data_dir} for name in names},
  }


def forgetting(**changes: Any) -> dict[str, Any]:
  """Returns the forgetting scenario, by default 4 requests of 20 classes."""
  sizes = {"num_requests": 4, "classes_per_request": 20}
  return scenario("forgetting", **{**sizes, **changes})


def ffn_lora(rank: int = 8) -> dict[str, Any]:
  """Returns GS-LoRA's adapters, scale 1 / rank, on both layers of the MLPs."""
  layers = r".*/MlpBlock_0/Dense_[01]"
  return {"layers": layers, "rank": rank, "alpha": 1.0}


def key_value_lora(rank: int) -> dict[str, Any]:
  """Returns adapters, scale 1, on the key and value layers of all blocks."""
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
    # What is projected on the method's subspace: "update", "gradient" or None.
    "project": config_dict.placeholder(str),
  }
  return {**options, **changes}


def sgd(lr: float, **changes: Any) -> dict[str, Any]:
  """Returns SGD's settings, with Nesterov momentum, for one parameter group."""
  options = {**adam(lr), "name": "sgd", "momentum": 0.9, "nesterov": True}
  return {**options, **changes}


def proximal_adam(lr: float, **changes: Any) -> dict[str, Any]:
  """Returns AdamW's settings with the group lasso's proximal step."""
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
  """Trains only adapters, without clipping; the method sets the kind of step.

  Args:
    config: Changed in place; with method.subgradient Adam takes the step,
      without it the proximal step of the group lasso does.
    lr: Learning rate.
    **changes: Changed settings of the adapters' group.
  """
  config.optimizer.groups = LORA_GROUPS
  settings = proximal_adam(lr, **changes)
  if config.method.subgradient:
    settings["name"] = "adam"
  config.optimizer.lora = settings
  config.optimizer.head = None
  config.optimizer.backbone = None
  config.optimizer.clip_norm = float("inf")


def classifier(config: ml_collections.ConfigDict) -> None:
  """Trains all classes in one stage and exports the weights for other runs."""
  config.export = True
  config.scenario.num_tasks = 1
  config.method = method("finetune")


def measure(config: ml_collections.ConfigDict) -> None:
  """Trains nothing; measures the given weights in the config's scenario."""
  config.method = method("frozen")
  config.model.lora = None
  config.optimizer.groups = HEAD_GROUPS
  del config.optimizer["lora"]
  config.export = False


def prompt_optimizer(
  config: ml_collections.ConfigDict, lr: float, prompts: str = PROMPTS
) -> None:
  """Trains prompts and head with one learning rate and freezes the rest.

  Args:
    config: Changed in place.
    lr: The learning rate.
    prompts: Pattern of the parameters that the method adds.
  """
  config.optimizer.groups = (("prompt", prompts), *HEAD_GROUPS)
  config.optimizer.prompt = adam(lr)
  config.optimizer.head = adam(lr)
  config.optimizer.backbone = None


def lora_optimizer(
  config: ml_collections.ConfigDict, lr: float, head_lr: float
) -> None:
  """Trains adapters and head with LoRA-Sub-DRS's optimizer, no clipping."""
  config.optimizer.groups = LORA_GROUPS
  adam_hat = {"schedule": "late_quarter_cosine", "epsilon_hat": True}
  config.optimizer.lora = adam(lr, project="update", **adam_hat)
  config.optimizer.head = adam(head_lr, **adam_hat)
  config.optimizer.backbone = None
  config.optimizer.clip_norm = float("inf")


# Rehearsal settings that the flags of the L2P code allow. It ships no config
# with them: per_class is that of the paper's largest buffer. review_epochs is
# 5 because the code evaluates every review_epochs // 5 epochs, so that fewer
# epochs divide by zero. "replay" is our own: the loss of an exemplar sees the
# classes up to the current stage.
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
  """Sets rehearsal as in an entry of REHEARSAL.

  Raises:
    ValueError: REHEARSAL has no such entry.
  """
  if preset not in REHEARSAL:
    raise ValueError(
      f"rehearsal={preset!r} must be one of {sorted(REHEARSAL)}."
    )
  config.rehearsal.update(REHEARSAL[preset])


# Reference methods for the prompt methods: key of METHODS, changed options, and
# factor of `body_lr`, the backbone's learning rate (0: frozen).
REFERENCES: dict[str, tuple[str, dict[str, Any], float]] = {
  "finetune": ("finetune", {}, 1.0),
  "head": ("finetune", {}, 0.0),
  "masked_head": ("finetune", {"mask_classes": True}, 0.0),
  "lora": ("finetune", {"mask_classes": True}, 0.0),
  "nearest_mean": ("nearest_mean", {}, 0.0),
  # The paper projects to 10,000; these data sets are small.
  "ranpac": ("ranpac", {"projection_dim": 2000}, 0.0),
  "inflora": ("inflora", {}, 0.0),
  "joint": ("joint", {}, 1.0),
}

# Reference methods with adapters -> pattern of the parameters they train.
ADAPTED = {"lora": r".*/lora_[ab]", "inflora": r".*/lora_b"}


def reference(
  config: ml_collections.ConfigDict,
  name: str,
  *,
  head_lr: float,
  body_lr: float,
  lora_lrs: dict[str, float],
) -> None:
  """Turns a prompt method's config into that of a reference method.

  Args:
    config: Changed in place; data, scenario and model are kept.
    name: "finetune" (all weights, one task after the other), "head" (only
      the head), "masked_head" (the same, other tasks' classes masked in
      training), "lora" (the same with adapters), "nearest_mean", "ranpac",
      "inflora" or "joint" (all weights, all data so far).
    head_lr: Learning rate of the head.
    body_lr: Learning rate of the backbone, if it is trained.
    lora_lrs: Method with adapters -> their learning rate.

  Raises:
    ValueError: REFERENCES has no such method.
  """
  if name not in REFERENCES:
    raise ValueError(
      f"Unknown method={name!r}. {registry.nearest(name, REFERENCES)}"
    )
  key, changes, trained = REFERENCES[name]
  config.name = name
  config.model.classifier = "token"
  config.method = method(key, **changes)
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
  """Returns the config; with the argument "smoke" it is shrunk first."""
  return smoke(config) if arg.smoke else config
