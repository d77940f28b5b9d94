"""The weights that a run starts from: of a file, made, or drawn."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from libml import scenarios
from models import checksums
from models import initial


def first(
  config: ConfigDict,
  model: Any,
  scenario: scenarios.Scenario | None = None,
  *,
  make: Callable[[str], str] | None = None,
) -> tuple[Any, dict[str, Any]]:
  """Returns the first parameters, on the host, and their entry in the results.

  Args:
    config: From a config file.
    model: The module.
    scenario: Decides which columns of the file's head to load; None: all.
    make: Name of a pretraining config -> path of the weights that it makes.

  Raises:
    ValueError: The config names no weights, or they do not fit the model.
  """
  path, prefix = config.init_checkpoint, ""
  if path is None and config.pretrain and make:
    path, prefix = make(config.pretrain), f"{config.pretrain}/"
  if path is not None:
    columns = scenario.columns(config.init_head_names) if scenario else {}
    head = dict(head=config.init_head, **columns)
    params = initial.load(model, path, seed=config.seed, **head)
    name = prefix + pathlib.Path(path).name
    return params, {"name": name, "sha256": checksums.of(path)}
  if not config.random_init:
    raise ValueError(
      "No pretrained weights: give --my_config.init_checkpoint=FILE (.npz or "
      ".safetensors), or set --my_config.random_init=True."
    )
  # A head of zeros, which fresh heads are, passes no gradient.
  whole = config.init_head == "keep"
  params = initial.draw(model, seed=config.seed, heads=whole)
  return jax.device_get(params), {"name": "random", "seed": config.seed}
