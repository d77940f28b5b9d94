"""Times what LoRA-Sub-DRS adds to a step and to a task; one line of JSON.

python benchmarks/lora_sub.py configs/cifar100_lora_sub.py \
      --batch_size 16 --known 90 --dtype bfloat16

In a step it times the projection of all updates and the triplet loss with its
gradient, each alone, and the whole step. In a task it times the pass for the
second moments, a plain forward pass, and the eigendecompositions.
"""

import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import train_step
import workload

from libml.optim import projection
from methods import lora_sub
from models import lora


def projecting(load: workload.Workload) -> Any:
  """Returns a function that projects the updates of every adapter."""
  _, adapters = lora.split(load.state.params)
  updates = jax.tree.map(jnp.ones_like, adapters)
  tx = projection.project_updates()

  def project(updates, memory):
    extra = load.method.extra_args(memory)
    return tx.update(updates, tx.init(updates), **extra)[0]

  compiled = jax.jit(project)
  return lambda: compiled(updates, load.state.memory)


def mining(load: workload.Workload) -> Any:
  """Returns a function that computes the triplet loss and its gradient."""
  memory, label = load.state.memory, load.batch["label"]
  shape = (len(label), load.method.model.width)
  features = jax.random.normal(jax.random.key(0), shape)

  def loss(features, memory):
    return lora_sub.augmented_triplet(
      features,
      label,
      memory["prototypes"],
      memory["known"],
      margin=load.method.margin,
    )

  compiled = jax.jit(jax.value_and_grad(loss))
  return lambda: compiled(features, memory)


def measure(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Returns the measurements that a command line asks for."""
  load, args = workload.start(__doc__ or "", argv)
  step = train_step.measure(argv)["seconds"]
  state, method = load.state, load.method
  parts = {
    "projection": workload.timed(projecting(load), 15),
    "triplet": workload.timed(mining(load), 15),
  }
  share = {
    clock: round(sum(part[clock] for part in parts.values()) / step[clock], 5)
    for clock in step
  }
  moments = jax.jit(method.moments)
  forward = jax.jit(method.apply)
  seen = moments(state.params, state.memory, load.batch)
  project = jax.jit(method.project)
  passes = {
    "moments_of_a_batch": workload.timed(
      lambda: moments(state.params, state.memory, load.batch), args.steps
    ),
    "forward_of_a_batch": workload.timed(
      lambda: forward(state.params, load.batch), args.steps
    ),
    "eigendecompositions": workload.timed(lambda: project(seen), args.steps),
  }
  return {
    "config": load.config.name,
    "dtype": load.config.model.dtype,
    "batch_size": load.config.batch_size,
    "known": args.known,
    "step": step,
    "share_of_projection_and_triplet": share,
    **{
      name: {clock: round(value, 6) for clock, value in seconds.items()}
      for name, seconds in {**parts, **passes}.items()
    },
  }


if __name__ == "__main__":
  print(json.dumps(measure()))
