"""The weights that a run starts from: of a file, made, or drawn."""

import logging
import pathlib
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from libml import scenarios
from models import checksums
from models import described
from models import initial
from models import pretrained

_LOG = logging.getLogger("palimpsest")


def settle(config: ConfigDict) -> ConfigDict:
  """Returns a config with what its file of weights says in place of None.

  That is the model's variant, image size and GELU. Where all are None, an
  export also says how images are normalized.

  Args:
    config: From a config file.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: The config names no file, the file does not say what is asked,
      or its sizes are no variant's.
  """
  asked = [key for key in described.KEYS if config.model.get(key, "") is None]
  if "width" in config.model:  # its sizes stand in the config
    asked = [key for key in asked if key != "variant"]
  if not asked:
    return config
  if config.init_checkpoint is None:
    raise ValueError(
      "No pretrained weights: give --my_config.init_checkpoint=FILE (.npz or "
      f".safetensors), which says the model's {', '.join(asked)}, or set "
      f"{' and '.join(f'--my_config.model.{key}' for key in asked)}."
    )
  told = pretrained.settings(config.init_checkpoint)
  unsaid = [key for key in asked if key not in told["model"]]
  if unsaid:
    raise ValueError(
      f"{config.init_checkpoint} does not say the model's {unsaid[0]}: set "
      f"--my_config.model.{unsaid[0]}, as in the run that made the file."
    )
  told["model"] = {key: told["model"][key] for key in asked}
  if len(asked) < len(described.KEYS):
    told.pop("preprocess", None)
  config = config.copy_and_resolve_references()
  config.update(told)
  _LOG.info("%s says: %s", config.init_checkpoint, _line(told))
  return config


def _line(sections: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns settings as the command line takes them."""
  return ", ".join(
    f"{section}.{key}={value}"
    for section, settings in sections.items()
    for key, value in settings.items()
  )


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
