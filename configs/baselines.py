"""The baselines of forgetting: their options and optimizers.

The values are those of the GS-LoRA authors' scripts for four requests on faces,
where their code has the method; the others' are ours.
"""

from typing import Any

import ml_collections
from ml_collections import config_dict

from configs import common
from configs import smoke

_RELABELLED = {"relabel": "kept"}
_WEIGHING = {**_RELABELLED, "weigh_on": "retain"}
_SCRUB = {
  "retain": 0.99,
  "distill": 0.001,
  "temperature": 2.0,
  "average_decay": 0.9,
  "max_rounds": 5,
  "min_rounds": 10,
}

# Method -> options.
OPTIONS = {
  "l2": {**_RELABELLED, "strength": 0.1},
  "ewc": {**_WEIGHING, "strength": 10.0},
  "mas": {**_WEIGHING, "strength": 0.005},
  "lwf": {
    **_RELABELLED,
    "distill": 0.5,
    "temperature": 2.0,
    "retain": 10.0,
    "dead": False,
  },
  "der": {**_RELABELLED, "distill": 0.01},
  "der_plus": {**_RELABELLED, "distill": 0.005, "retain": 0.005},
  "fdr": {**_RELABELLED, "distill": 50.0},
  "scrub": {**_SCRUB, "smoothing": 0.0},
  "scrub_s": {**_SCRUB, "smoothing": 0.1},
  "lirf": {
    **_RELABELLED,
    "mixed": 0.1,
    "temperature": 10.0,
    "attention": 300.0,
    "distill": 10.0,
    "retain": 5.0,
    "deposit": 0.0,
    "by_position": False,
  },
  "retrain": {},
  "finetune_retain": {},
  "gradient_ascent": {},
  "neg_grad": {"weight": 0.95},
  "random_labels": {**_RELABELLED, "retain": 1.0},
  "salun": {**_RELABELLED, "retain": 1.0, "saliency": 0.5},
  "bad_teacher": {"temperature": 1.0, "draw": 0},
  "ssd": {
    "select": 1.0,
    "dampen": 1.0,
    "layers": r"(?!head/).*",
  },
  "hide_head": {},
}

# What the released code does differently.
PARITY = {
  "ewc": {"weigh_on": "retain_all"},
  "mas": {"weigh_on": "retain_all"},
  "lwf": {"dead": True},
  "lirf": {"by_position": True, "deposit": 0.05},
}

# Methods with another peak rate than 1e-4.
RATES = {"der": 1e-3, "der_plus": 1e-3, "fdr": 1e-3, "retrain": 3e-4}

# The parameters below the cut of LIRF in a network of some blocks.
_LOWER = r"embedding/.*|cls|Transformer/(posembed_input|encoderblock_({}))/.*"


def adapt(
  config: ml_collections.ConfigDict,
  arg: ml_collections.ConfigDict,
  *,
  lr: float | None = None,
  min_lr: float | None = None,
  blocks: int = 12,
  **changes: Any,
) -> None:
  """Gives a config a baseline and its optimizer.

  Args:
    config: Changed in place; it has the scenario.
    arg: With method, a row of OPTIONS, and perhaps parity: as the released code
      has it.
    lr: Peak rate; None: the scripts'.
    min_lr: Lowest rate; None: a tenth of the peak.
    blocks: Of the network.
    **changes: Of the method's options.

  Raises:
    ValueError: Another method.
  """
  name, parity = arg.method, arg.get("parity", False)
  if name not in OPTIONS:
    raise ValueError(f"method={name!r} must be one of {sorted(OPTIONS)}.")
  # A placeholder is one object: one that all configs had would tie them.
  saliency = config_dict.placeholder(float)
  options = {"saliency": saliency, **OPTIONS[name]}
  if parity:
    options.update(PARITY.get(name, {}))
    if "relabel" in options:
      options["relabel"] = "shifted"
    config.scenario.whole_retain = options.get("weigh_on") == "retain_all"
    config.scenario.redraw = True
  options.update(changes)
  config.method = {"name": name, "restart_optimizer": True, **options}
  config.model.lora = None
  config.init_head = "keep"
  config.optimizer.clip_norm = float("inf")
  rate = lr or RATES.get(name, 1e-4)
  blocks = smoke.FEWEST_BLOCKS if arg.smoke else blocks
  KINDS.get(name, whole)(config, rate, blocks)
  for group, _ in config.optimizer.groups:
    if config.optimizer[group] and min_lr is not None:
      config.optimizer[group].min_lr = min_lr


def whole(config: ml_collections.ConfigDict, lr: float, blocks: int) -> None:
  """Trains all but the head with AdamW; biases and norms do not decay."""
  del blocks
  config.optimizer.groups = (
    ("head", r"head/.*"),
    ("vectors", r".*(bias|scale)"),
    ("backbone", r".*"),
  )
  settings = common.adam(lr, schedule="timm_cosine", min_lr=0.1 * lr)
  config.optimizer.head = None
  config.optimizer.vectors = settings
  config.optimizer.backbone = {**settings, "weight_decay": 0.05}


def scrub(config: ml_collections.ConfigDict, lr: float, blocks: int) -> None:
  """Trains all but the head with Adam and coupled decay, in two steps."""
  del blocks
  settings = common.adam(lr, schedule="late_drop", min_lr=0.1 * lr, l2=5e-4)
  config.optimizer.head = None
  config.optimizer.backbone = settings


def lower(config: ml_collections.ConfigDict, lr: float, blocks: int) -> None:
  """Trains the lower half, and the deposit where there is one to train."""
  whole(config, lr, blocks)
  low = _LOWER.format("|".join(map(str, range(blocks // 2))))
  vectors = {**config.optimizer.vectors}
  backbone = {**config.optimizer.backbone}
  # The released code never trains the deposit.
  trained = low if config.method.by_position else rf"(deposit/)?({low})"
  config.optimizer.groups = (
    ("vectors", rf"(?=.*(bias|scale))({trained})"),
    ("lower", trained),
    ("backbone", r".*"),
  )
  config.optimizer.vectors = vectors
  config.optimizer.lower = backbone
  config.optimizer.backbone = None
  del config.optimizer["head"]


def everything(
  config: ml_collections.ConfigDict, lr: float, blocks: int
) -> None:
  """Trains all weights, the head's, too, after a warm-up."""
  whole(config, lr, blocks)
  config.optimizer.groups = config.optimizer.groups[1:]
  del config.optimizer["head"]
  for group, _ in config.optimizer.groups:
    config.optimizer[group].warmup_epochs = min(5.0, config.epochs / 4)


def nothing(config: ml_collections.ConfigDict, lr: float, blocks: int) -> None:
  """Trains nothing."""
  del lr, blocks
  config.optimizer.head = None
  config.optimizer.backbone = None


# Method -> its optimizer, where it is not `whole`.
KINDS = {
  "scrub": scrub,
  "scrub_s": scrub,
  "lirf": lower,
  "retrain": everything,
  "ssd": nothing,
  "hide_head": nothing,
}
