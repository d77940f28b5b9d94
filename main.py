"""Learn, forget and swap classes in a pretrained vision transformer.

python main.py --my_config configs/digits_l2p.py --workdir ./digits
"""

import functools
import importlib
import json
import logging
import os
import pathlib
import platform
import sys
from collections.abc import Callable
from typing import Any

# Set before the imports: TensorFlow reads these variables when it is imported.
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
from libml.audit import audits
from libml.devices import compiled
from libml.devices import processes
from libml.devices import sharding
from libml.problems import PROBLEMS
from libml.registry import plain
from libml.results import console
from libml.results import results
from libml.results import tables
from libml.results.progress_line import ProgressLine
from libml.results.writer import Writer
from libml.scenarios import verification
from libml.train import export
from libml.train import made_once
from libml.train import run as run_lib
from libml.train import settings as settings_lib
from libml.train import weights
from libml.train import workdirs
from libml.train.display import Display
from libml.train.observer import Observer
from libml.train.rehearsal import Rehearsal
from libml.train.walk import Interrupted
from methods import METHODS
from models import MODELS

_LOG = logging.getLogger("palimpsest")

_CONFIG = config_flags.DEFINE_config_file(
  "my_config",
  None,
  "configs/NAME.py, with arguments after a colon: NAME.py:KEY=VALUE,KEY.",
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder that a run writes to.")
_EXP_ID = flags.DEFINE_string(
  "exp_id", None, "Subfolder of --workdir to write to."
)
_AUDIT = flags.DEFINE_bool(
  "audit", False, "Audit the last stage of a finished run; trains nothing."
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "Join the run's processes on a TPU pod or in SLURM."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "HOST:PORT of process 0; needed only outside TPU pods and SLURM.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "Number of processes."
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Number of this process, from 0."
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
  return optim.build(
    **plain(config.optimizer),
    epochs=config.epochs,
    batch_size=config.batch_size,
    lasso=method.groups,
    transforms=method.transforms,
  )


def build_scenario(config: ConfigDict) -> tuple[Any, scenarios.Scenario]:
  """Returns the data set, and the scenario that divides it into stages."""
  source = registry.build(datasets.DATASETS, "dataset", **plain(config.dataset))
  if config.holdout:
    source = datasets.hold_out(source, config.holdout, config.holdout_seed)
  scenario = registry.build(
    scenarios.SCENARIOS, "scenario", **plain(config.scenario), source=source
  )
  scenario = Rehearsal(**plain(config.rehearsal)).extend(scenario, config.seed)
  scenario = verification.attach(scenario, **plain(config.verification))
  return source, scenario


def build_run(
  config: ConfigDict, scenario: scenarios.Scenario, **others: Any
) -> run_lib.Run:
  """Returns the Run of a config; `others` are further arguments of Run."""
  # These import TensorFlow, which takes seconds.
  from libml.images import mixing
  from libml.images import preprocess

  method = build_method(config, scenario.num_classes, len(scenario.stages))
  chain = functools.partial(preprocess.Preprocess, size=config.model.image_size)
  mixed = functools.partial(mixing.Mixing, num_classes=scenario.num_classes)
  return run_lib.Run(
    method=method,
    scenario=scenario,
    optimizer=build_optimizer(config, method),
    preprocess=registry.build(
      {"preprocess": chain}, "chain", "preprocess", **plain(config.preprocess)
    ),
    mixing=registry.build(
      {"mixing": mixed}, "settings", "mixing", **plain(config.mixing)
    ),
    settings=settings_lib.of(config),
    rules=plain(config.sharding),
    **others,
  )


def upstream(
  should_stop: Callable[[], bool], observer: Observer | None, name: str
) -> str:
  """Returns the path of weights that a config makes on first use.

  Args:
    should_stop: As for `execute`.
    observer: Of the run; its `inner` observes the run that makes the weights.
    name: NAME.py:ARGUMENTS of the config, without ".py".
  """
  module, _, arg = name.partition(":")
  try:
    config = importlib.import_module(f"configs.{module}").get_config(arg)
  except ModuleNotFoundError:
    raise ValueError(f"pretrain={name!r}: no configs/{module}.py.") from None
  inner = observer.inner(name) if observer else None
  run = functools.partial(execute, should_stop=should_stop, observer=inner)
  return made_once.upstream(name, config, run)


def execute(
  config: ConfigDict,
  workdir: pathlib.Path,
  should_stop: Callable[[], bool] = lambda: False,
  *,
  mesh: jax.sharding.Mesh | None = None,
  audit: bool = False,
  observer: Observer | None = None,
) -> dict[str, Any]:
  """Runs a config to its end; a run that was stopped is resumed.

  Args:
    config: From a config file.
    workdir: Of checkpoints, results and TensorBoard's files.
    should_stop: Called after each step; True stops the run.
    mesh: Used instead of the config's mesh.
    audit: Whether to audit a finished run instead.
    observer: Its hooks are called during the run.

  Returns:
    The results. With several processes only those of process 0 are complete.

  Raises:
    ValueError: Settings, images or weights that do not fit each other, or a
      workdir that holds the run of another config.
    OSError: A file that cannot be read or written.
    Interrupted: `should_stop` said so; a checkpoint is saved.
    FloatingPointError: A loss or gradient is not finite.
  """
  mesh = mesh or sharding.make_mesh(**plain(config.mesh))
  config = settings_lib.with_global_batch(weights.settle(config), mesh)
  plain_config = json.loads(config.to_json())
  processes.check_same("config", plain_config)
  with workdirs.begin(workdir, plain_config, audit=audit) as (record, audit):
    if record is not None and not audit:
      _LOG.info("%s is finished; nothing is trained.", workdir)
      return record
    observer = observer or Observer()
    observer.on_work("reading the list of images")
    source, scenario = build_scenario(config)
    observer.on_work("loading TensorFlow")
    run = build_run(
      config, scenario, mesh=mesh, should_stop=should_stop, observer=observer
    )
    observer.on_work("reading the weights")
    make = functools.partial(upstream, should_stop, observer)
    params, made = weights.first(config, run.method.model, scenario, make=make)
    state = run.start(params)
    del params  # or they stay in host memory during the whole run
    facts = results.facts(
      plain_config,
      weights=made,
      data=source.description,
      scenario=scenario,
      parameters=run.optimizer.groups.sizes(state.params),
      mesh=mesh,
    )
    ask = audits.Audits.bind(
      run, state.params, mesh, **plain(config.audit), again=audit
    )
    if audit:
      return run.audit(state, workdir, facts, ask)
    with Writer(workdir, total_stages=len(scenario.stages)) as writer:
      writer.hparams(plain_config)
      state, record = run.walk(state, workdir, facts, writer, audit=ask)
    if config.export:
      export.write(workdir, run, state, config=plain_config, mesh=mesh)
    return record


def main(_: list[str]) -> None:
  """Runs what the flags say."""
  console.start(_LOG)
  compiled.keep_compiled(made_once.CACHE / "xla" / platform.node())
  workdir = pathlib.Path(_WORKDIR.value or "", _EXP_ID.value or "")
  try:
    processes.join(
      _COORDINATOR.value,
      _NUM_PROCESSES.value,
      _PROCESS_ID.value,
      detect=_DISTRIBUTED.value,
    )
    # After join: jax.distributed installs its own handler of SIGTERM.
    stop = processes.stop_on_signals()
    with ProgressLine(quiet=not processes.is_first()) as line:
      display = Display(line)
      record = execute(
        _CONFIG.value, workdir, stop, audit=_AUDIT.value, observer=display
      )
  except Interrupted as stop:
    _LOG.info("Stopped and saved. The same command continues %s.", stop)
    return
  except (ValueError, OSError, FloatingPointError) as error:
    processes.part(error)
    _LOG.debug("", exc_info=True)
    sys.exit(f"{type(error).__name__}: {error}")
  if processes.is_first():
    tables.show([record])


if __name__ == "__main__":
  flags.mark_flags_as_required(["my_config", "workdir"])
  flags.register_validator("workdir", bool, "must name a folder.")
  app.run(main, flags_parser=console.parse)
