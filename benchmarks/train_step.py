"""Times the training step of a config on random images; one line of JSON.

python benchmarks/train_step.py configs/cifar100_l2p.py \
      --batch_size 16 --dtype bfloat16
"""

import json
from collections.abc import Sequence
from typing import Any

import jax
import workload

from libml.devices import sharding
from libml.train import steps


def measure(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Returns the measurements of the step that a command line asks for."""
  load, args = workload.start(__doc__ or "", argv)
  # One batch for each stream; a method reads only its own.
  batch = dict.fromkeys(("train", "retain", "forget"), load.batch)
  state = load.state
  step = jax.jit(
    steps.make_train_step(
      load.method.loss, load.method.extra_args, load.optimizer
    ),
    donate_argnums=0,
    out_shardings=(
      jax.tree.map(lambda x: x.sharding, state),
      sharding.replicated(load.mesh),
    ),
  )
  step, facts = workload.compile_step(step, state, batch)

  def call():
    nonlocal state
    state, metrics = step(state, batch)
    return metrics

  seconds = workload.timed(call, args.steps)
  loss = float(call()["loss"])
  return {
    "step": "train",
    **workload.report(load, facts, seconds),
    "loss": loss,
  }


if __name__ == "__main__":
  print(json.dumps(measure()))
