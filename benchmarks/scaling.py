"""Estimates how efficient data parallelism is on more chips, without chips.

  python benchmarks/scaling.py configs/cifar100_l2p.py

Compiles the train step of a config for 8 virtual devices from shapes only, so
no weights, data or TensorFlow are needed; compares it with the same model when
all parameters are trained. Prints a Markdown table and one line of JSON.
"""

import argparse
import dataclasses
import functools
import importlib
import json
import math
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import main
from configs import base
from configs import common
from libml import registry
from libml import trees
from libml.devices import collectives
from libml.devices import sharding
from libml.train import settings
from libml.train import steps

DEVICES = 8
COUNTS = (8, 64, 512)

# Assumed shares of the peak FLOP/s and of the bandwidth that a run reaches.
COMPUTE_SHARE = 0.5
BANDWIDTH_SHARE = 0.7
# Share of a step, the backward pass, in which gradients can be sent meanwhile.
# Gradients of prompts come at its end, so they do not overlap.
OVERLAP_SHARE = 2 / 3
# Seconds to start a collective operation.
LAUNCH_SECONDS = 20e-6


@dataclasses.dataclass(frozen=True)
class Chip:
  """A chip and its connections.

  Attributes:
    flops: Peak dense bf16 FLOP/s.
    near: Bytes/s that a chip sends to chips of its island.
    near_hop: Latency of one hop inside an island, in seconds.
    island: Number of chips that `near` connects; 0: all, in a
      three-dimensional torus.
    far: Bytes/s that a chip sends out of its island.
    far_hop: Latency of one hop between islands, in seconds.
  """

  flops: float
  near: float
  near_hop: float
  island: int = 0
  far: float = math.inf
  far_hop: float = 0.0

  def all_reduce(self, count: int, size: float) -> float:
    """Returns the seconds to sum `size` bytes over `count` chips."""
    island = min(self.island or count, count)
    moved = 2 * (island - 1) / island * size
    seconds = LAUNCH_SECONDS + moved / (BANDWIDTH_SHARE * self.near)
    if not self.island:
      side = round(count ** (1 / 3))
      return seconds + 3 * 2 * (side - 1) * self.near_hop
    seconds += 2 * (island - 1) * self.near_hop
    islands = count // island
    if islands > 1:  # each chip sums a part of its island's sum
      moved = 2 * (islands - 1) / islands * size / island
      seconds += moved / (BANDWIDTH_SHARE * self.far)
      seconds += 2 * math.ceil(math.log2(islands)) * self.far_hop
    return seconds


# Peaks and bandwidths are from the makers (cloud.google.com/tpu/docs/v4: 275
# TFLOP/s, six links of 50 GB/s; H100 SXM data sheet: 989 TFLOP/s dense, NVLink
# 450 GB/s each way; DGX H100: 400 Gbit/s InfiniBand a GPU). Hops are assumed.
CHIPS = {
  "TPU v4": Chip(flops=275e12, near=300e9, near_hop=1e-6),
  "H100": Chip(
    flops=989e12,
    near=450e9,
    near_hop=2e-6,
    island=8,
    far=50e9,
    far_hop=5e-6,
  ),
}


@dataclasses.dataclass(frozen=True)
class Step:
  """A compiled train step.

  Attributes:
    compiled: The compiled function.
    batch_size: Global batch size.
    param_bytes: Size of all parameters.
    trained_bytes: Size of the trained parameters.
  """

  compiled: Any
  batch_size: int
  param_bytes: int
  trained_bytes: int

  def flops_per_image(self) -> float:
    """Returns the FLOPs of a step for each image, as XLA counts them."""
    cost = self.compiled.cost_analysis()
    return cost["flops"] * DEVICES / self.batch_size


def load(name: str) -> Any:
  """Returns a config; `name` is its file, with arguments after a colon."""
  name, _, argument = name.partition(":")
  module = importlib.import_module(f"configs.{pathlib.Path(name).stem}")
  return module.get_config(argument or None)


def compile_step(config: Any, num_classes: int = 100) -> Step:
  """Compiles the train step of a config for all devices, from shapes only."""
  mesh = sharding.make_mesh(**registry.plain(config.mesh))
  config = settings.with_global_batch(config, mesh)
  method = main.build_method(config, num_classes, 10)
  optimizer = main.build_optimizer(config, method)
  image = method.model.example_input()["image"]
  rng = jax.eval_shape(lambda: jax.random.key(0))

  def first_params(rng, image):
    params = method.model.init(rng, {"image": image})["params"]
    return method.init_params(params, rng)

  params = jax.eval_shape(first_params, rng, image)
  state = jax.eval_shape(
    functools.partial(steps.first_state, method, optimizer), params, rng
  )
  batch = {
    "image": ((config.batch_size, *image.shape[1:]), jnp.float32),
    "label": ((config.batch_size,), jnp.int32),
  }
  rows = NamedSharding(mesh, P("data"))
  batch = {
    name: jax.ShapeDtypeStruct(*kind, sharding=rows)
    for name, kind in batch.items()
  }
  places = sharding.infer(state, registry.plain(config.sharding), mesh)
  step = jax.jit(
    steps.make_train_step(method.loss, method.extra_args, optimizer),
    donate_argnums=0,
    out_shardings=(places, sharding.replicated(mesh)),
  )
  state = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    state,
    places,
  )
  held = {
    name: leaf.size * leaf.dtype.itemsize
    for name, leaf in trees.flatten(params).items()
  }
  trained = trees.flatten(optimizer.groups.trainable(params))
  return Step(
    compiled=step.lower(state, {"train": batch}).compile(),
    batch_size=config.batch_size,
    param_bytes=sum(held.values()),
    trained_bytes=sum(size for name, size in held.items() if trained[name]),
  )


def estimate(chip: Chip, flops: float, size: float, batch: int) -> list[Any]:
  """Returns one dict for each number of chips.

  Args:
    chip: Key of CHIPS.
    flops: FLOPs of a step for each image.
    size: Bytes that a step all-reduces.
    batch: Images on each chip.

  Returns:
    For each of COUNTS: "chips", "compute_ms", "all_reduce_ms", "efficiency"
    (share of compute in a step without overlap), "efficiency_overlapped" (with
    overlap), "hidden_from_batch" (images on each chip from which the backward
    pass hides the all-reduce).
  """
  per_image = flops / (COMPUTE_SHARE * chip.flops)
  found = []
  for count in COUNTS:
    compute, sent = batch * per_image, chip.all_reduce(count, size)
    hidden = max(compute, compute * (1 - OVERLAP_SHARE) + sent)
    found.append(
      {
        "chips": count,
        "compute_ms": 1e3 * compute,
        "all_reduce_ms": 1e3 * sent,
        "efficiency": compute / (compute + sent),
        "efficiency_overlapped": compute / hidden,
        "hidden_from_batch": math.ceil(sent / (OVERLAP_SHARE * per_image)),
      }
    )
  return found


def rows(name: str, facts: dict[str, Any], batch: int) -> list[str]:
  """Returns the rows of one step in the table."""
  return [
    f"| {name} | {chip} | {at['chips']} | {batch * at['chips']} | "
    f"{at['compute_ms']:.2f} | {at['all_reduce_ms']:.3f} | "
    f"{at['efficiency']:.1%} | {at['efficiency_overlapped']:.1%} | "
    f"{at['hidden_from_batch']} |"
    for chip, found in facts["chips"].items()
    for at in found
  ]


def measure(config: Any, batch: int, num_classes: int) -> dict[str, Any]:
  """Compiles a config's step; returns its costs and the estimates."""
  step = compile_step(config, num_classes)
  exchanged = collectives.exchanged_bytes(step.compiled.as_text())
  flops = step.flops_per_image()
  size = exchanged["all-reduce"]
  return {
    "param_bytes": step.param_bytes,
    "trained_bytes": step.trained_bytes,
    "exchanged_bytes": exchanged,
    "gflop_per_image": flops / 1e9,
    "chips": {
      name: estimate(chip, flops, size, batch) for name, chip in CHIPS.items()
    },
  }


def run() -> None:
  """Reads the arguments and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("config", help="config file, with :arguments")
  parser.add_argument("--num_classes", type=int, default=100)
  parser.add_argument(
    "--batch", type=int, default=16, help="images on each chip"
  )
  arguments = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", DEVICES)
  config, finetune = load(arguments.config), base.get_config()
  finetune.model.update(config.model)
  common.reference(
    finetune, "finetune", head_lr=1e-3, body_lr=1e-3, lora_lrs={}
  )
  found = {}
  for name, one in {config.name: config, "all trained": finetune}.items():
    one.per_device_batch_size = arguments.batch
    if "vote_group" in one.method:
      one.method.vote_group = arguments.batch
    found[name] = measure(one, arguments.batch, arguments.num_classes)
  print(
    "| step | chip | chips | images | compute, ms | all-reduce, ms | "
    "efficiency | overlapped | hidden from |\n"
    "|---|---|---|---|---|---|---|---|---|"
  )
  for name, facts in found.items():
    print("\n".join(rows(name, facts, arguments.batch)))
  print(json.dumps({"config": arguments.config, "steps": found}))


if __name__ == "__main__":
  run()
