"""Times the evaluation step of a config on random images; two lines of JSON.

The first line is the step as a run takes it from the second stage on: it reads
what the method computes once for each test image, such as the queries of prompt
methods, from a cache. In the second line the step computes that each time.

  python benchmarks/evaluate.py configs/cifar100_l2p.py \
      --batch_size 16 --dtype bfloat16 --set method.vote_group=0
"""

import json
from collections.abc import Sequence
from typing import Any

import jax
import workload

from libml.devices import sharding
from libml.train import steps


def measure(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
  """Returns the measurements of both steps that a command line asks for."""
  load, args = workload.start(__doc__ or "", argv)
  method, state = load.method, load.state
  replicated = sharding.replicated(load.mesh)
  classes = range(args.num_classes)
  constants = jax.device_put(
    method.problem.constants(classes, args.num_classes), replicated
  )
  fixed = jax.jit(method.precompute)(state.params, state.memory, load.batch)
  evaluate = jax.jit(
    steps.make_evaluate_step(
      method.predict, method.problem.measure, method.observe
    ),
    out_shardings=replicated,
  )
  results = []
  for name, batch in (
    ("evaluate, cached", {**load.batch, **fixed}),
    ("evaluate", load.batch),
  ):
    inputs = state.params, state.memory, batch, constants
    step, facts = workload.compile_step(evaluate, *inputs)
    seconds = workload.timed(lambda s=step, i=inputs: s(*i), args.steps)
    results.append({"step": name, **workload.report(load, facts, seconds)})
  return results


if __name__ == "__main__":
  for result in measure():
    print(json.dumps(result))
