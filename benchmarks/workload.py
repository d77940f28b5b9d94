"""What the benchmarks share: a config's objects, random images, and timing.

Nothing here imports TensorFlow, so it runs where the input pipeline cannot.
"""

import argparse
import ast
import dataclasses
import importlib.util
import os
import pathlib
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import main  # noqa: E402  (found through the line above)
from libml import registry  # noqa: E402
from libml.devices import sharding  # noqa: E402
from libml.train import steps  # noqa: E402


def arguments(description: str) -> argparse.ArgumentParser:
  """Returns the command line that the benchmarks of a config share."""
  parser = argparse.ArgumentParser(description=description)
  parser.add_argument("config", help="config file, with :arguments")
  parser.add_argument("--dtype", help="float32 or bfloat16")
  parser.add_argument("--batch_size", type=int, help="over all devices")
  parser.add_argument("--image_size", type=int)
  parser.add_argument("--variant", help="of the model, such as ViT-B_16")
  parser.add_argument("--steps", type=int, default=5, help="timed steps")
  parser.add_argument("--num_classes", type=int, default=100)
  parser.add_argument(
    "--known",
    type=int,
    default=0,
    help="number of classes with a prototype, as before a later task",
  )
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    help="any key of the config, such as method.top_k=2",
  )
  return parser


def read_config(args: argparse.Namespace) -> Any:
  """Returns the config that a command line asks for.

  Raises:
    ValueError: The file, a key or a value does not exist.
  """
  path, _, argument = args.config.partition(":")
  file = pathlib.Path(path)
  if not file.is_file():
    raise ValueError(f"There is no config file {path!r}; give configs/NAME.py.")
  spec = importlib.util.spec_from_file_location(file.stem, file)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(argument or None)
  changes = {
    "model.dtype": args.dtype,
    "batch_size": args.batch_size,
    "model.image_size": args.image_size,
    "model.variant": args.variant,
  }
  for item in args.set:
    key, _, text = item.partition("=")
    try:
      changes[key] = ast.literal_eval(text)
    except (ValueError, SyntaxError):
      changes[key] = text
  changes = {key: new for key, new in changes.items() if new is not None}
  try:
    config.lock().update_from_flattened_dict(changes)
  except (KeyError, TypeError) as error:
    reason = " ".join(str(error.args[0]).split())
    raise ValueError(
      f"The config does not take the changes {changes}: {reason}"
    ) from None
  group = config.method.get("vote_group")
  if group and config.batch_size % group:
    config.method.vote_group = config.batch_size
  return config


@dataclasses.dataclass(frozen=True)
class Workload:
  """A config's objects, and a batch like those of its first stage.

  Attributes:
    config: The config, with the changes of the command line.
    method: The method.
    optimizer: The optimizer.
    mesh: The mesh of all devices.
    state: TrainState with random weights, before the first stage.
    batch: image [B, S, S, 3], label, index and mask [B], on the mesh.
  """

  config: Any
  method: Any
  optimizer: Any
  mesh: jax.sharding.Mesh
  state: Any
  batch: dict[str, Any]

  @property
  def streams(self) -> int:
    """Batches in a step: two for methods that forget, else one."""
    return 2 if "forget" in self.method.goals else 1


def build(config: Any, num_classes: int) -> Workload:
  """Returns a config's objects, built as in a run."""
  scenario = config.scenario
  stages = scenario.get("num_tasks") or scenario.num_requests
  method = main.build_method(config, num_classes, stages)
  optimizer = main.build_optimizer(config, method)
  mesh = sharding.make_mesh(**registry.plain(config.mesh))
  rules = registry.plain(config.sharding)
  count, inputs = config.batch_size, method.model.example_input()
  params = jax.jit(method.model.init)(jax.random.key(0), inputs)["params"]
  params = method.init_params(params, jax.random.key(1))
  params = sharding.place({"params": params}, rules, mesh)["params"]
  state = steps.first_state(method, optimizer, params, jax.random.key(2))
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.standard_normal(
      (count, *inputs["image"].shape[1:]), np.float32
    ),
    "label": rng.integers(0, num_classes, count).astype(np.int32),
    "index": np.arange(count, dtype=np.int32),
    "mask": np.ones(count, bool),
  }
  return Workload(
    config=config,
    method=method,
    optimizer=optimizer,
    mesh=mesh,
    state=sharding.place(state, rules, mesh),
    batch=sharding.place_batch(batch, mesh),
  )


def with_prototypes(workload: Workload, count: int) -> Workload:
  """Returns the workload with prototypes of `count` classes.

  Raises:
    ValueError: The method has no prototypes, or fewer classes.
  """
  memory = workload.state.memory
  if "known" not in memory or count > workload.method.num_classes:
    raise ValueError(
      f"--known={count} needs a method with prototypes of at least as many "
      f"classes, and this one has {workload.method.num_classes} classes; lower "
      "it, or leave it out for a method without prototypes."
    )
  rng = np.random.default_rng(1)
  known = np.arange(workload.method.num_classes) < count
  means = rng.standard_normal(memory["prototypes"].shape, np.float32)
  memory = {**memory, "known": known, "prototypes": means * known[:, None]}
  rules = registry.plain(workload.config.sharding)
  state = sharding.place(
    workload.state.replace(memory=memory), rules, workload.mesh
  )
  return dataclasses.replace(workload, state=state)


def timed(call: Callable[[], Any], repeats: int) -> dict[str, float]:
  """Returns the median seconds of a call: "wall" by the clock, "cpu" used.

  "cpu" is the processor time of all threads divided by their number. Compare it
  where other programs use the same cores.

  Args:
    call: What is timed; a first call, which may compile, is not.
    repeats: Number of timed calls.
  """
  jax.block_until_ready(call())
  walls, cpus = [], []
  for _ in range(repeats):
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    walls.append(time.perf_counter() - wall)
    cpus.append((time.process_time() - cpu) / num_threads())
  return {"wall": statistics.median(walls), "cpu": statistics.median(cpus)}


def num_threads() -> int:
  """Returns the number of threads that a computation on the host may use."""
  return len(os.sched_getaffinity(0))


def matmul_rate(dtype: str) -> dict[str, float]:
  """Returns FLOP/s of a large matrix product in a type, on one device.

  The keys are those of `timed`.
  """
  big = jax.default_backend() != "cpu"
  rows, inner, columns = (8192, 8192, 8192) if big else (3152, 768, 3072)
  rng = np.random.default_rng(0)
  a, b = (
    jnp.asarray(rng.standard_normal(shape, np.float32), dtype)
    for shape in ((rows, inner), (inner, columns))
  )
  # On CPU only products with a float32 result are fast.
  result = None if big else jnp.float32
  product = jax.jit(
    lambda a, b: jnp.matmul(a, b, preferred_element_type=result)
  )
  seconds = timed(lambda: product(a, b), 15)
  flops = 2.0 * rows * inner * columns
  return {name: flops / value for name, value in seconds.items()}


def compile_step(jitted: Any, *args: Any) -> tuple[Any, dict[str, Any]]:
  """Returns the compiled function, and the compiler's numbers of its costs."""
  lowered = jitted.lower(*args)
  began = time.perf_counter()
  compiled = lowered.compile()
  seconds = time.perf_counter() - began
  memory = compiled.memory_analysis()
  peak = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )
  return compiled, {
    "compile_seconds": round(seconds, 2),
    "flop": float(compiled.cost_analysis()["flops"]),
    "temporary_bytes": memory.temp_size_in_bytes,
    "device_bytes": peak,
  }


def report(
  workload: Workload, facts: dict[str, Any], seconds: dict[str, float]
) -> dict[str, Any]:
  """Returns the measurements of one step, for a line of JSON.

  Args:
    workload: What was timed.
    facts: From `compile_step`.
    seconds: From `timed`.
  """
  config = workload.config
  dtype = config.model.dtype
  rate = matmul_rate(dtype)
  # cost_analysis counts the FLOPs of one device.
  flops = facts["flop"]
  return {
    "config": config.name,
    "variant": config.model.variant,
    "image_size": config.model.image_size,
    "batch_size": config.batch_size,
    "dtype": dtype,
    "images_per_second": round(
      workload.streams * config.batch_size / seconds["wall"], 2
    ),
    "seconds": {name: round(value, 5) for name, value in seconds.items()},
    **facts,
    "host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    * 1024,
    "gflops": {n: round(flops / s / 1e9, 1) for n, s in seconds.items()},
    "matmul_gflops": {n: round(r / 1e9, 1) for n, r in rate.items()},
    "share_of_matmul": {
      n: round(flops / s / rate[n], 3) for n, s in seconds.items()
    },
    "device": jax.devices()[0].device_kind,
    "num_devices": jax.device_count(),
    "threads": num_threads(),
    "versions": {
      "python": platform.python_version(),
      "jax": jax.__version__,
      "flax": flax.__version__,
    },
  }


def start(
  description: str, argv: Sequence[str] | None
) -> tuple[Workload, argparse.Namespace]:
  """Reads a command line and builds its workload.

  Raises:
    SystemExit: An argument is wrong; the message is one line.
  """
  args = arguments(description).parse_args(argv)
  try:
    if args.steps < 1:
      raise ValueError(f"steps={args.steps} must be at least 1.")
    load = build(read_config(args), args.num_classes)
    return (with_prototypes(load, args.known) if args.known else load), args
  except ValueError as error:
    sys.exit(f"{type(error).__name__}: {error}")
