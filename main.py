"""Learn, forget and swap classes in a pretrained vision transformer.

python main.py --my_config configs/digits_l2p.py --workdir ./digits
"""

import dataclasses
import functools
import importlib
import json
import logging
import math
import os
import pathlib
import platform
import signal
import sys
import zlib
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

# TensorFlow only feeds images; it reads both when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax
from absl import app
from absl import flags
from ml_collections import ConfigDict
from ml_collections import config_flags

from libml import datasets
from libml import optim
from libml import registry
from libml import scenarios
from libml import trees
from libml.audit import audits
from libml.datasets import class_map
from libml.devices import compiled
from libml.devices import processes
from libml.devices import sharding
from libml.problems import PROBLEMS
from libml.registry import plain
from libml.results import console
from libml.results import results
from libml.results import tables
from libml.scenarios import verification
from libml.train import made_once
from libml.train import run as run_lib
from libml.train import settings as settings_lib
from libml.train import workdirs
from libml.train.observer import Observer
from libml.train.rehearsal import Rehearsal
from libml.train.walk import Interrupted
from methods import METHODS
from methods.parts import class_heads
from models import MODELS
from models import export as models_export
from models import lora
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
_AUDIT = flags.DEFINE_bool(
  "audit", False, "Ask a finished run what its model still knows."
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "Find the run's other processes: TPU pods, SLURM."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, where nothing finds it."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "How many processes make the run."
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Which of them this one is, from 0."
)


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
    rehearsal=Rehearsal(**plain(config.rehearsal)),
  )


def build_optimizer(config: ConfigDict, method: Any) -> optim.Optimizer:
  """Returns the optimizer, its rates scaled to the global batch."""
  settings = plain(config.optimizer)
  per = settings.pop("lr_batch_size")
  scale = config.batch_size / per if per else 1.0
  return optim.build(
    **settings,
    epochs=config.epochs,
    lr_scale=scale,
    lasso=method.groups,
    transforms=method.transforms,
  )


def with_global_batch(
  config: ConfigDict, mesh: jax.sharding.Mesh
) -> ConfigDict:
  """Returns a copy whose batch_size is that over all devices of the mesh."""
  config = config.copy_and_resolve_references()
  if config.per_device_batch_size is not None:
    config.batch_size = config.per_device_batch_size * mesh.shape["data"]
  return config


def build_scenario(config: ConfigDict) -> tuple[Any, scenarios.Scenario]:
  """Returns the images and the order in which they come."""
  source = registry.build(datasets.DATASETS, "dataset", **plain(config.dataset))
  if config.holdout:
    source = datasets.hold_out(source, config.holdout, config.holdout_seed)
  scenario = registry.build(
    scenarios.SCENARIOS,
    "scenario",
    **plain(config.scenario),
    source=source,
  )
  scenario = Rehearsal(**plain(config.rehearsal)).extend(scenario, config.seed)
  scenario = verification.attach(scenario, **plain(config.verification))
  return source, scenario


def initial_params(
  config: ConfigDict,
  model: Any,
  should_stop: Callable[[], bool] = lambda: False,
  class_names: Sequence[str] = (),
  new: int = 0,
) -> tuple[Any, dict[str, Any]]:
  """Returns the parameters on the host, and what the results say of them.

  Args:
    config: From a config file.
    model: The module.
    should_stop: Asked while weights are made.
    class_names: One name a column of the head, for config.init_head_names.
    new: Columns at its end that weights to load lack.
  """
  inputs = model.example_input()
  init = functools.partial(model.init, jax.random.key(config.seed))
  path, prefix = config.init_checkpoint, ""
  if path is None and config.pretrain:
    path, prefix = upstream(config.pretrain, should_stop), f"{config.pretrain}/"
  if path is not None:
    template = jax.eval_shape(init, inputs)["params"]
    base, adapters = lora.split(template)
    rng = jax.random.key(config.seed)
    names = config.init_head_names
    known = class_names[: len(class_names) - new]
    rows = names and class_map.head_rows(names, known)
    head = dict(head=config.init_head, rows=rows, new=new)
    loaded = pretrained.load(path, base, **head, seed=config.seed)
    params = lora.join(loaded, jax.device_get(lora.restart(adapters, rng)))
    name = prefix + pathlib.Path(path).name
    return params, {"name": name, "sha256": pretrained.checksum(path)}
  if not config.random_init:
    raise ValueError(
      "No pretrained weights: give --my_config.init_checkpoint=FILE (.npz or "
      ".safetensors), or say --my_config.random_init=True."
    )
  params = jax.jit(init)(inputs)["params"]
  if config.init_head == "keep":  # a new one is zero and passes nothing on
    key = jax.random.key(config.seed)
    params = class_heads.draw(params, key, model.class_heads)
  params = jax.device_get(params)
  return params, {"name": "random", "seed": config.seed}


def upstream(name: str, should_stop: Callable[[], bool]) -> str:
  """Returns the weights that a pretraining config makes, from the cache.

  They are made on first use.
  """
  module, _, arg = name.partition(":")
  config = importlib.import_module(f"configs.{module}").get_config(arg)
  settings = json.loads(config.to_json())
  del settings["audit"]  # weights are the same, whatever is asked of them
  text = json.dumps(settings, sort_keys=True)
  key = f"{zlib.crc32(text.encode()):08x}"

  def make(workdir: pathlib.Path) -> None:
    _LOG.info("Making the weights of configs/%s.py, once.", name)
    # The weights must not depend on the devices, so batch_size stands.
    ways = math.gcd(config.batch_size, jax.device_count())
    mesh = sharding.make_mesh(ways, jax.device_count() // ways)
    execute(config, workdir, should_stop, mesh=mesh)

  folder = CACHE / f"{module}-{key}"
  return made_once.weights(folder, make, pretrained.checksum)


def build_audit(
  config: ConfigDict,
  run: run_lib.Run,
  state: Any,
  mesh: jax.sharding.Mesh,
  *,
  again: bool,
) -> Callable[..., dict[str, Any]]:
  """Returns (state, stage, data) -> what a finished stage's model still knows.

  Args:
    config: From a config file.
    run: Its method and scenario.
    state: From `start`: the first model.
    mesh: Where it lies.
    again: Whether to audit a finished run, whatever the config says.
  """
  settings = plain(config.audit)
  folder, stages = settings.pop("retrained"), settings.pop("stages")
  stages = "last" if again and stages == "none" else stages
  asked = audits.Audits(**settings, stages=stages)
  asked.check(run.scenario)
  if asked.stages != "none":
    own = trees.without(state.params, run.method.private)
    template, _ = lora.split(jax.eval_shape(lambda: own))
    forgotten = run.scenario.forgotten
    asked = dataclasses.replace(
      asked,
      first=sharding.to_host(state.params, mesh),
      retrained=folder and models_export.retrained(folder, template, forgotten),
    )
  return functools.partial(asked.ask, run.method, run.scenario)


def execute(
  config: ConfigDict,
  workdir: pathlib.Path,
  should_stop: Callable[[], bool] = lambda: False,
  *,
  mesh: jax.sharding.Mesh | None = None,
  audit: bool = False,
  observer: Observer | None = None,
) -> dict[str, Any]:
  """Runs a config to its end, or goes on where it stopped.

  Args:
    config: From a config file.
    workdir: Where checkpoints, results and curves are.
    should_stop: Asked after each step.
    mesh: Takes the place of the config's.
    audit: Whether to audit a finished run instead.
    observer: Watches the run.

  Returns:
    The results; in a run of several processes, what process 0 returns counts.
  """
  mesh = mesh or sharding.make_mesh(**plain(config.mesh))
  config = with_global_batch(config, mesh)
  plain_config = json.loads(config.to_json())
  processes.check_same("config", plain_config)
  record = workdirs.finished(workdir, exported=config.export)
  if audit and record is None:
    raise ValueError(
      f"{workdir} holds no finished run to audit; first leave --audit out."
    )
  workdirs.claim(workdir, plain_config)
  audit |= config.audit.stages != "none" and workdirs.lacks_audits(record)
  if record is not None and not audit:
    _LOG.info("%s is finished; nothing is trained.", workdir)
    return record
  # These pull in TensorFlow, which takes seconds.
  from libml.images import mixing
  from libml.images import preprocess
  from libml.results import reporting

  source, scenario = build_scenario(config)
  method = build_method(config, scenario.num_classes, len(scenario.stages))
  optimizer = build_optimizer(config, method)
  run = run_lib.Run(
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
    mixing=registry.build(
      {"mixing": mixing.Mixing},
      "settings",
      "mixing",
      **plain(config.mixing),
      num_classes=scenario.num_classes,
    ),
    settings=settings_lib.Settings(
      seed=config.seed,
      batch_size=config.batch_size,
      log_every=config.log_every,
      checkpoint_every=config.checkpoint.every_steps,
      checkpoint_keep=config.checkpoint.keep,
    ),
    mesh=mesh,
    rules=plain(config.sharding),
    should_stop=should_stop,
    observer=observer,
  )
  names, new = scenario.class_names, scenario.new_classes
  params, weights = initial_params(
    config, method.model, should_stop, names, new
  )
  state = run.start(params)
  del params  # or the host would keep them for as long as the run takes
  facts = results.facts(
    plain_config,
    weights=weights,
    data=source.description,
    scenario=scenario,
    parameters=optimizer.groups.sizes(state.params),
    mesh=mesh,
  )
  processes.check_same(
    "weights, data or packages",
    {key: facts[key] for key in ("weights", "data", "versions")},
  )
  ask = build_audit(config, run, state, mesh, again=audit)
  if audit:
    return run.audit(state, workdir, facts, ask)
  reporter = reporting.Reporter(workdir, total_stages=len(scenario.stages))
  try:
    reporter.hparams(plain_config)
    state, record = run.walk(state, workdir, facts, reporter, audit=ask)
  finally:
    reporter.close()
  if config.export:
    params = trees.without(state.params, method.private)
    params = sharding.to_host(params, mesh)
    if processes.is_first():
      models_export.write(
        workdir / "export",
        model=method.model,
        params=params,
        config=plain_config,
        classes=scenario.class_names or None,
        forgotten=scenario.forgotten,
      )
  return record


def main(argv: list[str]) -> None:
  """Reads the flags and runs."""
  del argv
  console.start(_LOG)
  compiled.keep_compiled(CACHE / "xla" / platform.node())
  stopped = []
  workdir = pathlib.Path(_WORKDIR.value or "", _EXP_ID.value or "")
  try:
    processes.join(
      _COORDINATOR.value,
      _NUM_PROCESSES.value,
      _PROCESS_ID.value,
      detect=_DISTRIBUTED.value,
    )
    # After join, which has a handler of its own.
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    stop = functools.partial(bool, stopped)
    record = execute(_CONFIG.value, workdir, stop, audit=_AUDIT.value)
  except Interrupted as stop:
    _LOG.info("Stopped and saved; the same command goes on %s.", stop)
    return
  except (ValueError, OSError, FloatingPointError) as error:
    processes.part(error)
    _LOG.debug("", exc_info=True)
    sys.exit(f"{type(error).__name__}: {error}")
  if processes.is_first():
    tables.show([record])


if __name__ == "__main__":
  flags.mark_flags_as_required(["my_config", "workdir"])
  app.run(main, flags_parser=console.parse)
