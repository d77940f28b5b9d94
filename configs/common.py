"""Parts that config files share."""

import difflib
from typing import Any

import ml_collections
from ml_collections import config_dict

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


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
  """Reads "smoke,tasks=4": a bare name is True; "smoke" is always known.

  Args:
    arg: What follows the colon of --my_config; None: nothing.
    **defaults: The names that a config file takes, with their defaults.

  Raises:
    ValueError: An unknown name, or a value of another type.
  """
  known = {"smoke": False, **defaults}
  parsed = dict(known)
  for item in (arg or "").split(","):
    if not item:
      continue
    name, _, text = item.partition("=")
    if name not in known:
      close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
      hint = f"Did you mean {close[0]!r}? " if close else ""
      raise ValueError(
        f"Unknown config argument {name!r}. {hint}Known: {sorted(known)}."
      )
    kind = type(known[name])
    if kind is bool:
      if text.lower() not in ("", "true", "false"):
        raise ValueError(f"{item!r}: {name} is either true or false.")
      parsed[name] = text.lower() != "false"
    else:
      try:
        parsed[name] = kind(text)
      except ValueError:
        raise ValueError(
          f"{item!r}: {name} takes a value of type {kind.__name__}."
        ) from None
  return ml_collections.ConfigDict(parsed)


def order_seed(order: str) -> int | None:
  """Returns the seed of a class order: "natural" (None), or a number.

  Raises:
    ValueError: Anything else.
  """
  if order == "natural":
    return None
  if not order.isdecimal():
    raise ValueError(
      f"order={order!r} must be 'natural' or the seed that draws the class "
      "order, such as 1993."
    )
  return int(order)


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


_SYNTHETIC = {"name": "synthetic", "num_classes": 6, "per_class": 16, "size": 8}
# Scenario -> (its largest options in a smoke run, data that it takes).
_SMOKE = {
  "class_incremental": ({"num_tasks": 3}, _SYNTHETIC),
  "joined": (
    {},
    {
      "name": "collection",
      "order": ("two", "three", "other_two"),
      "two": {**_SYNTHETIC, "num_classes": 2, "per_class": 24, "seed": 1},
      "three": {**_SYNTHETIC, "num_classes": 3, "seed": 2},
      "other_two": {**_SYNTHETIC, "num_classes": 2, "seed": 3},
    },
  ),
  "domain_incremental": (
    {},
    {**_SYNTHETIC, "name": "synthetic_sessions", "sessions": 3},
  ),
  "gaussian": (
    {"num_stages": 6, "width": 2.0, "measure_every": 3},
    {**_SYNTHETIC, "per_class": 4},
  ),
}


def smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Shrinks any config: tiny model, made-up images, three tasks, seconds."""
  config.batch_size = 8
  config.epochs = 1
  config.rehearsal.per_class = min(4, config.rehearsal.per_class)
  config.holdout = 0.0
  config.random_init = True
  config.init_checkpoint = None
  config.pretrain = None
  largest, data = _SMOKE[config.scenario.name]
  for option, most in largest.items():
    config.scenario[option] = min(most, config.scenario[option])
  config.dataset = data
  config.preprocess.train = "none"
  config.preprocess.eval = "native"
  config.preprocess.resize = None
  config.model.variant = "smoke"
  config.model.image_size = 8
  if config.model.lora:
    config.model.lora.rank = min(2, config.model.lora.rank)
  if "vote_group" in config.method:
    config.method.vote_group = min(4, config.method.vote_group)
  if config.method.get("first_epochs"):
    config.method.first_epochs = 1
  if "projection_dim" in config.method:
    # With more of them than images, one device and two end apart.
    config.method.projection_dim = min(8, config.method.projection_dim)
  for group, _ in config.optimizer.groups:
    if config.optimizer[group] and config.optimizer[group].name == "adam":
      # Else Adam makes full steps of the rounding noise of so few images, and
      # one device and two end apart.
      config.optimizer[group].eps = 1e-4
  config.log_every = 2
  config.checkpoint.every_steps = 3
  return config
