"""Smoke runs: any config, shrunk to a run of seconds."""

import ml_collections

from methods import METHODS

# Blocks of a smoke run's model, unless Method.fewest_blocks asks for more.
SMOKE_DEPTH = 2

_SYNTHETIC = {"name": "synthetic", "num_classes": 6, "per_class": 16, "size": 8}
# Scenario -> (largest values of its options in a smoke run, its data).
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
  "forgetting": (
    {"num_requests": 3, "classes_per_request": 1, "missing": 1},
    _SYNTHETIC,
  ),
  "swapping": (
    {"spare": 1},
    {
      "name": "swap_classes",
      "known": _SYNTHETIC,
      "learn": (4, 5),
      "forget": (2, 3),
      "retain": (0, 1),
    },
  ),
}


def smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Shrinks a config to a tiny model, synthetic images and three tasks."""
  config.batch_size = 8
  config.epochs = 1
  config.rehearsal.per_class = min(4, config.rehearsal.per_class)
  config.holdout = 0.0
  config.random_init = True
  config.init_head_names = None
  config.init_checkpoint = None
  config.pretrain = None
  config.verification.update({"pairs": None, "root": None})
  largest, data = _SMOKE[config.scenario.name]
  for option, most in largest.items():
    given = config.scenario[option]
    config.scenario[option] = most if given is None else min(most, given)
  config.dataset = data
  config.preprocess.train = "none"
  config.preprocess.eval = "native"
  config.preprocess.resize = None
  config.model.variant = "smoke"
  config.model.image_size = 8
  if config.model.get("gelu", "") is None:
    config.model.gelu = "tanh"
  method = METHODS[config.method.name]
  for option, most in method.smoke.items():
    if config.method[option] is not None:
      config.method[option] = min(most, config.method[option])
  fewest = method.fewest_blocks(config.method)
  config.model.depth = max(SMOKE_DEPTH, fewest)
  if config.model.lora:
    config.model.lora.rank = min(2, config.model.lora.rank)
  if config.scenario.name == "forgetting":
    config.scenario.update({"requests": None, "order": None, "retain": None})
    config.scenario.shots = 8
    config.epochs = 2
  if config.scenario.name == "swapping":
    config.scenario.update({"shots": 8, "learn_shots": None})
    config.epochs = 2
  for group, _ in config.optimizer.groups:
    settings = config.optimizer[group]
    if not settings:
      continue
    if "warmup_epochs" in settings:
      settings.warmup_epochs = 0.0
    if settings.name.endswith("adam"):
      # With a smaller eps Adam turns rounding noise of so few images into full
      # steps, and results depend on the number of devices.
      settings.eps = 1e-4
  config.log_every = 2
  config.checkpoint.every_steps = 10
  return config
