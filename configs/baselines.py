"""Baselines of forgetting: their options and optimizers.

For methods in the GS-LoRA code, the values are those of its authors' scripts
for four requests on faces; for the others they are our own.
"""

from typing import Any

import ml_collections

from configs import common
from configs import smoke
from methods import METHODS
from methods.parts import unlearning

# The methods that train a network's own weights to forget.
BASELINES = tuple(
  name
  for name, row in METHODS.items()
  if issubclass(row, unlearning.Unlearning)
)

# Options with which a method behaves like the released code.
PARITY = {
  "ewc": {"weigh_on": "retain_all"},
  "mas": {"weigh_on": "retain_all"},
  "lwf": {"dead": True},
  "lirf": {"by_position": True, "deposit": 0.05},
}

# Options that name parts of the ViT; a method does not know these names.
PARTS = {"ssd": {"layers": r"(?!head/).*"}}

# Peak learning rates of the methods that do not use 1e-4.
RATES = {"der": 1e-3, "der_plus": 1e-3, "fdr": 1e-3, "retrain": 3e-4}

# Parameters below LIRF's cut; {} is filled with the numbers of the blocks.
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
  """Sets a baseline and its optimizer in a config.

  Args:
    config: Changed in place; its scenario must be set.
    arg: "method", one of BASELINES; "parity" (optional), the released code's
      behaviour.
    lr: Peak learning rate; None: that of the scripts.
    min_lr: Lowest learning rate; None: a tenth of the peak.
    blocks: Number of the network's blocks.
    **changes: Changed options of the method.

  Raises:
    ValueError: The method is not in BASELINES.
  """
  name, parity = arg.method, arg.get("parity", False)
  if name not in BASELINES:
    raise ValueError(f"method={name!r} must be one of {sorted(BASELINES)}.")
  if parity:
    relabels = "relabel" in common.method(name)
    shifted = {"relabel": "shifted"} if relabels else {}
    changes = {**shifted, **PARITY.get(name, {}), **changes}
    config.scenario.whole_retain = changes.get("weigh_on") == "retain_all"
    config.scenario.redraw = True
  config.method = common.method(name, **{**PARTS.get(name, {}), **changes})
  config.model.lora = None
  config.init_head = "keep"
  config.optimizer.clip_norm = float("inf")
  rate = lr or RATES.get(name, 1e-4)
  blocks = smoke.SMOKE_DEPTH if arg.smoke else blocks
  KINDS.get(name, whole)(config, rate, blocks)
  for group, _ in config.optimizer.groups:
    if config.optimizer[group] and min_lr is not None:
      config.optimizer[group].min_lr = min_lr


def whole(config: ml_collections.ConfigDict, lr: float, blocks: int) -> None:
  """Trains all but the head with AdamW, without decay of biases and norms."""
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
  """Trains all but the head with Adam, L2 decay and a rate that drops once."""
  del blocks
  settings = common.adam(lr, schedule="late_drop", min_lr=0.1 * lr, l2=5e-4)
  config.optimizer.head = None
  config.optimizer.backbone = settings


def lower(config: ml_collections.ConfigDict, lr: float, blocks: int) -> None:
  """Trains the lower half and, unless as in the released code, the deposit."""
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
  """Trains all weights, the head included, with a warm-up."""
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


# Method -> function that sets its optimizer, if that is not `whole`.
KINDS = {
  "scrub": scrub,
  "scrub_s": scrub,
  "lirf": lower,
  "retrain": everything,
  "ssd": nothing,
  "hide_head": nothing,
}
