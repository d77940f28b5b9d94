"""Parts that config files share."""

from typing import Any

import ml_collections
from ml_collections import config_dict

from configs.arguments import order_seed as order_seed
from configs.arguments import parse_arg as parse_arg
from configs.arguments import title as title
from configs.smoke import smoke as smoke

# The channel statistics with which most ImageNet weights were trained.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PROMPT_GROUPS = (
  ("prompt", r"prompt_pool/.*|prefix|reweight"),
  ("head", r"head/.*"),
  ("backbone", r".*"),
)

LORA_GROUPS = (
  ("lora", r".*/lora_[ab]"),
  ("head", r"head/.*"),
  ("backbone", r".*"),
)


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


def l2p(**changes: Any) -> dict[str, Any]:
  """Returns L2P's options (the original's values for CIFAR-100)."""
  options = {
    "name": "l2p",
    "restart_optimizer": True,
    "e_layers": (0,),
    "e_prefix": False,
    "pool_size": 10,
    "length": 10,
    "top_k": 4,
    "prompt_key": True,
    "prompt_init": "uniform",
    "key_init": "uniform",
    "e_same_key_value": False,
    "g_layers": (),
    "g_prefix": True,
    "g_length": 5,
    "g_same_key_value": False,
    "reweight": False,
    "query": "cls",
    # The original's batch of one device; 0: each image chooses for itself.
    "vote_group": 16,
    "prompt_mask": False,
    "transfer_prompts": False,
    "transfer_keys": False,
    "key_loss": 1.0,
    "mask_classes": True,
    "transfer_head": "none",
  }
  return {**options, **changes}


def dualprompt(**changes: Any) -> dict[str, Any]:
  """Returns DualPrompt's options (the original's values for CIFAR-100)."""
  options = l2p(
    name="dualprompt",
    e_layers=(2, 3, 4),
    e_prefix=True,
    length=5,
    top_k=1,
    g_layers=(0, 1),
    vote_group=24,
    prompt_mask=True,
    transfer_prompts=True,
  )
  return {**options, **changes}


def lora_sub(**changes: Any) -> dict[str, Any]:
  """Returns LoRA-Sub-DRS's options (the code's values for CIFAR-100)."""
  options = {
    "name": "lora_sub",
    "restart_optimizer": True,
    "threshold": 0.99,
    "unit_norm": True,
    "triplet": 0.05,
    "margin": 1.0,
    "lora_b": "zeros",
    "augment_moments": True,
    "augment_prototypes": False,
    "first_epochs": config_dict.placeholder(int),
  }
  return {**options, **changes}


def gs_lora(**changes: Any) -> dict[str, Any]:
  """Returns GS-LoRA's options (bound and betas of the released code)."""
  options = {
    "name": "gs_lora",
    "restart_optimizer": True,
    "bound": 105.0,
    "beta": (0.2, 0.25, 0.25, 0.25),
    "beta_decay_epoch": config_dict.placeholder(int),
    "alpha": 0.01,
    "alpha_epoch": 20,
    "grouping": "block",
    "subgradient": False,
    "restart_slope": 5**0.5,
    "average_epoch": config_dict.placeholder(int),
    "average_decay": 0.9,
  }
  return {**options, **changes}


def gs_lora_plus(**changes: Any) -> dict[str, Any]:
  """Returns GS-LoRA++'s options, w_f and w_r for four requests."""
  options = gs_lora(
    name="gs_lora_plus",
    proto_forget=(0.01,) * 4,
    proto_retain=(0.0,) * 4,
    proto_bound=18.0,
    proto_distance="kl",
    proto_source="start",
  )
  return {**options, **changes}


def forgetting(**changes: Any) -> dict[str, Any]:
  """Returns the options of requests to forget: four, of 20 classes each."""
  options = {
    "name": "forgetting",
    # Class ids or names by request; None: from the end of the order.
    "requests": config_dict.placeholder(tuple),
    # All class ids; None: natural order.
    "order": config_dict.placeholder(tuple),
    "num_requests": 4,
    "classes_per_request": 20,
    # Classes to keep that have training images; None: all that stay.
    "retain": config_dict.placeholder(tuple),
    "missing": 0,
    "missing_from": "start",
    # Share of the training images still there, or images a class instead.
    "ratio": 0.1,
    "shots": config_dict.placeholder(int),
    "redraw": False,
    "sample_seed": 1337,
    "whole_retain": False,
  }
  return {**options, **changes}


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
  config.method = {
    "name": "finetune",
    "restart_optimizer": True,
    "mask_classes": False,
  }


def measure(config: ml_collections.ConfigDict) -> None:
  """Trains nothing: measures the given weights in the config's scenario."""
  config.method = {"name": "frozen", "restart_optimizer": True}
  config.model.lora = None
  config.optimizer.groups = (("head", r"head/.*"), ("backbone", r".*"))
  del config.optimizer["lora"]
  config.export = False


def prompt_optimizer(config: ml_collections.ConfigDict, lr: float) -> None:
  """Trains prompts and head at one rate and freezes the rest."""
  config.optimizer.groups = PROMPT_GROUPS
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


# RanPAC's grid. Its paper projects to 10,000; these streams are small.
RIDGES = tuple(10.0**n for n in range(-8, 9))

# Reference points beside the prompt methods: the method's options, and the
# learning rate of the backbone as a share of the head's (0: frozen).
REFERENCES = {
  "finetune": ({"name": "finetune", "mask_classes": False}, 1.0),
  "head": ({"name": "finetune", "mask_classes": False}, 0.0),
  "masked_head": ({"name": "finetune", "mask_classes": True}, 0.0),
  "lora": ({"name": "finetune", "mask_classes": True}, 0.0),
  "nearest_mean": ({"name": "nearest_mean"}, 0.0),
  "ranpac": ({"name": "ranpac", "projection_dim": 2000, "ridges": RIDGES}, 0.0),
  "inflora": (
    {
      "name": "inflora",
      "epsilon": 0.95,
      "final_epsilon": 1.0,
      "augment_moments": True,
    },
    0.0,
  ),
  "joint": ({"name": "joint", "mask_classes": False}, 1.0),
}

# Those that train adapters, and which parameters of them.
ADAPTED = {"lora": r".*/lora_[ab]", "inflora": r".*/lora_b"}


def reference(
  config: ml_collections.ConfigDict,
  method: str,
  head_lr: float,
  body_lr: float,
  lora_lrs: dict[str, float],
) -> None:
  """Turns a prompt method's config into one of the reference points.

  Args:
    config: Changed in place; data, scenario and model stay.
    method: "finetune" (all weights, one task after the other), "head" (only
      the head), "masked_head" (the same, other tasks' classes masked in
      training), "lora" (the same with adapters), "nearest_mean", "ranpac",
      "inflora" or "joint" (all weights, all data so far).
    head_lr: Learning rate of the head.
    body_lr: Learning rate of the backbone, where it is trained.
    lora_lrs: Learning rate of adapters, for each method that has some.

  Raises:
    ValueError: Another method.
  """
  if method not in REFERENCES:
    raise ValueError(f"method={method!r} must be one of {sorted(REFERENCES)}.")
  options, trained = REFERENCES[method]
  config.name = method
  config.model.classifier = "token"
  config.method = {**options, "restart_optimizer": True}
  config.optimizer.groups = (("head", r"head/.*"), ("backbone", r".*"))
  config.optimizer.head = adam(head_lr)
  config.optimizer.backbone = adam(body_lr * trained) if trained else None
  if method in ADAPTED:
    config.model.lora = key_value_lora(rank=10)
    config.optimizer.groups = (
      ("lora", ADAPTED[method]),
      *config.optimizer.groups,
    )
    config.optimizer.lora = adam(lora_lrs[method])


def finish(
  config: ml_collections.ConfigDict, arg: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
  """Returns the config, shrunk if the argument says "smoke"."""
  return smoke(config) if arg.smoke else config
