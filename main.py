"""Learn, forget and swap classes in a pretrained vision transformer.

python main.py --my_config configs/digits_l2p.py --workdir ./digits
"""

import fcntl
import functools
import importlib
import json
import logging
import os
import pathlib
import platform
import signal
import sys
import zlib
from collections.abc import Callable
from typing import Any

# TensorFlow only feeds images; it reads both when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax
import numpy as np
from absl import app
from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict
from ml_collections import config_flags

from libml import datasets
from libml import experiment
from libml import optim
from libml import registry
from libml import results
from libml import scenarios
from libml import sharding
from libml import tables
from libml import workdirs
from libml.problems import PROBLEMS
from methods import METHODS
from models import MODELS
from models import pretrained

CACHE = pathlib.Path(
  os.environ.get("PALIMPSEST_CACHE")
  or pathlib.Path.home() / ".cache" / "palimpsest"
)

_LOG = logging.getLogger("palimpsest")

_CONFIG = config_flags.DEFINE_config_file(
  "my_config", None, "Config file, with :arguments.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where a run writes.")
_EXP_ID = flags.DEFINE_string("exp_id", None, "Folder in the workdir.")


def plain(config: Any) -> Any:
  """Returns a config as plain dicts and tuples."""
  if isinstance(config, ConfigDict):
    config = config.to_dict()
  if isinstance(config, dict):
    return {key: plain(value) for key, value in config.items()}
  if isinstance(config, list | tuple):
    return tuple(plain(value) for value in config)
  return config


def build_method(config: ConfigDict, num_classes: int, num_stages: int) -> Any:
  """Returns the method that a config names, with its model and problem."""
  model = registry.build(
    MODELS, "model", **plain(config.model), num_classes=num_classes
  )
  problem = registry.build(PROBLEMS, "problem", **plain(config.problem))
  return registry.build(
    METHODS,
    "method",
    **plain(config.method),
    model=model,
    problem=problem,
    num_classes=num_classes,
    num_stages=num_stages,
    epochs=config.epochs,
  )


def build_optimizer(config: ConfigDict) -> optim.Optimizer:
  """Returns the optimizer, its rates scaled to the global batch."""
  settings = plain(config.optimizer)
  per = settings.pop("lr_batch_size")
  scale = config.batch_size / per if per else 1.0
  return optim.build(**settings, epochs=config.epochs, lr_scale=scale)


def build_scenario(config: ConfigDict) -> tuple[Any, scenarios.Scenario]:
  """Returns the images and the order in which they come."""
  source = registry.build(datasets.DATASETS, "dataset", **plain(config.dataset))
  if config.holdout:
    source = datasets.hold_out(source, config.holdout, config.seed)
  scenario = registry.build(
    scenarios.SCENARIOS, "scenario", **plain(config.scenario), source=source
  )
  return source, scenario


def initial_params(
  config: ConfigDict,
  model: Any,
  should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Any, dict[str, Any]]:
  """Returns the parameters on the host, and what the results say of them."""
  size = config.model.image_size
  inputs = {"image": np.zeros((1, size, size, 3), np.float32)}
  init = functools.partial(model.init, jax.random.key(config.seed))
  path, prefix = config.init_checkpoint, ""
  if path is None and config.pretrain:
    path, prefix = upstream(config.pretrain, should_stop), f"{config.pretrain}/"
  if path is not None:
    template = jax.eval_shape(init, inputs)["params"]
    params = pretrained.load(path, template)
    name = prefix + pathlib.Path(path).name
    return params, {"name": name, "sha256": pretrained.checksum(path)}
  if not config.random_init:
    raise ValueError(
      "No pretrained weights: give --my_config.init_checkpoint=FILE (.npz or "
      ".safetensors), or say --my_config.random_init=True."
    )
  params = jax.device_get(jax.jit(init)(inputs)["params"])
  return params, {"name": "random", "seed": config.seed}


def upstream(name: str, should_stop: Callable[[], bool]) -> str:
  """Returns the weights that a pretraining config makes, from the cache.

  They are made on first use; where their checksum is not the one that was
  written beside them, they are written again from that run's checkpoint.
  """
  config = importlib.import_module(f"configs.{name}").get_config()
  key = f"{zlib.crc32(config.to_json(sort_keys=True).encode()):08x}"
  folder = CACHE / f"{name}-{key}"
  folder.mkdir(parents=True, exist_ok=True)
  params, note = folder / "params.npz", folder / "params.sha256"
  with open(folder / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # two first uses at a time
    known = note.read_text() if note.exists() and params.exists() else None
    if known is None or known != pretrained.checksum(params):
      _LOG.info("Making the weights of configs/%s.py, once.", name)
      execute(config, folder / "run", should_stop)
      os.replace(folder / "run" / "params.npz", params)
      note.write_text(pretrained.checksum(params))
  return str(params)


def execute(
  config: ConfigDict,
  workdir: pathlib.Path,
  should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
  """Runs a config to its end, or goes on where it stopped.

  Args:
    config: From a config file.
    workdir: Where checkpoints, results and curves are.
    should_stop: Asked after each step.

  Returns:
    The results.
  """
  plain_config = json.loads(config.to_json())
  workdirs.claim(workdir, plain_config)
  record = results.read(workdir / "results.json")
  export = workdir / "params.npz" if config.export else None
  if record and record["finished"] and not (export and not export.exists()):
    _LOG.info("%s is finished; nothing is trained.", workdir)
    return record
  # These two pull in TensorFlow, which takes seconds.
  from libml import preprocess
  from libml import reporting

  source, scenario = build_scenario(config)
  method = build_method(config, scenario.num_classes, len(scenario.stages))
  optimizer = build_optimizer(config)
  mesh = sharding.make_mesh(**plain(config.mesh))
  run = experiment.Run(
    method=method,
    scenario=scenario,
    optimizer=optimizer,
    preprocess=registry.build(
      {"preprocess": preprocess.Preprocess},
      "chain",
      "preprocess",
      **plain(config.preprocess),
      size=config.model.image_size,
    ),
    settings=experiment.Settings(
      seed=config.seed,
      batch_size=config.batch_size,
      log_every=config.log_every,
      checkpoint_every=config.checkpoint.every_steps,
      checkpoint_keep=config.checkpoint.keep,
    ),
    mesh=mesh,
    rules=plain(config.sharding),
    should_stop=should_stop,
  )
  params, weights = initial_params(config, method.model, should_stop)
  state = run.start(params)
  del params  # or the host would keep them for as long as the run takes
  facts = {
    "name": config.name,
    "global_batch_size": config.batch_size,
    "seeds": {"run": config.seed, **scenario.seeds},
    "weights": weights,
    "data": {**source.description, "holdout": config.holdout},
    "scenario": dict(scenario.description),
    "versions": results.versions(),
    "devices": results.devices(mesh),
    "config": plain_config,
  }
  reporter = reporting.Reporter(workdir, total_stages=len(scenario.stages))
  try:
    reporter.hparams(facts["config"])
    state, record = run.walk(state, workdir, facts, reporter)
  finally:
    reporter.close()
  if export:
    pretrained.save(export, jax.device_get(state.params))
  return record


class Lines(logging.Handler):
  """Prints to what sys.stderr is at the time: above a progress bar."""

  def emit(self, record: logging.LogRecord) -> None:
    """Prints one line."""
    print(self.format(record), file=sys.stderr, flush=True)


def parse(argv: list[str]) -> list[str]:
  """Reads the flags; a config that cannot be read is one line, no traceback."""
  try:
    return app.parse_flags_with_usage(argv)
  except (ValueError, OSError, LookupError, AttributeError, TypeError) as error:
    sys.exit(f"{type(error).__name__}: {error}")


def main(argv: list[str]) -> None:
  """Reads the flags and runs."""
  del argv
  absl_logging.set_verbosity(absl_logging.WARNING)  # orbax tells every file
  _LOG.setLevel(logging.INFO)
  _LOG.propagate = False
  lines = Lines()
  lines.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
  _LOG.addHandler(lines)
  cache = os.environ.get(
    "JAX_COMPILATION_CACHE_DIR", str(CACHE / "xla" / platform.node())
  )
  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  stopped = []
  signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
  workdir = pathlib.Path(_WORKDIR.value or "", _EXP_ID.value or "")
  try:
    record = execute(_CONFIG.value, workdir, lambda: bool(stopped))
  except experiment.Interrupted:
    _LOG.info("Stopped and saved; the same command goes on from here.")
    return
  except (ValueError, OSError, FloatingPointError) as error:
    _LOG.debug("", exc_info=True)
    sys.exit(f"{type(error).__name__}: {error}")
  if jax.process_index() == 0:
    tables.show([record])


if __name__ == "__main__":
  flags.mark_flags_as_required(["my_config", "workdir"])
  app.run(main, flags_parser=parse)
