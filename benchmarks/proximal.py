"""Times the proximal step and the whole training step; one line of JSON.

python benchmarks/proximal.py configs/casia100_gs_lora.py --batch_size 48

Times the optimizer's step of the adapters with the group lasso and, to compare,
as plain AdamW.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import train_step
import workload

from libml.optim import group_lasso
from libml.optim import proximal
from models import lora


def updating(tx: Any, adapters: Any) -> Any:
  """Returns a function that takes a step of a transform, with alpha 1e-3."""
  tx = optax.with_extra_args_support(tx)
  state = jax.jit(tx.init)(adapters)
  grads = jax.tree.map(lambda p: jnp.full_like(p, 1e-3), adapters)

  @jax.jit
  def update(grads, state, params, alpha):
    updates, state = tx.update(grads, state, params, alpha=alpha)
    return optax.apply_updates(params, updates), state

  return lambda: update(grads, state, adapters, jnp.float32(1e-3))


def measure(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Returns the measurements that a command line asks for.

  Raises:
    SystemExit: The method has no lasso groups.
  """
  load, _ = workload.start(__doc__ or "", argv)
  groups = load.method.groups
  if groups is None:
    sys.exit(
      f"The method {load.config.method.name!r} has no lasso groups; use a "
      "config such as configs/casia100_gs_lora.py."
    )
  _, adapters = lora.split(load.state.params)
  step = train_step.measure(argv)["seconds"]
  optimizers = {
    "proximal": proximal.proximal_group_lasso(
      1e-2, 0.0, groups, weight_decay=0.05
    ),
    "adamw": optax.adamw(1e-2, weight_decay=0.05),
  }
  parts = {
    name: workload.timed(updating(tx, adapters), 50)
    for name, tx in optimizers.items()
  }
  return {
    "config": load.config.name,
    "variant": load.config.model.variant,
    "batch_size": load.config.batch_size,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(adapters)),
    "groups": len(group_lasso.members(adapters, groups)),
    "step": step,
    **{
      name: {clock: round(value, 6) for clock, value in seconds.items()}
      for name, seconds in parts.items()
    },
    "share_of_proximal": {
      clock: round(parts["proximal"][clock] / step[clock], 5) for clock in step
    },
    "device": jax.devices()[0].device_kind,
    "threads": workload.num_threads(),
  }


if __name__ == "__main__":
  print(json.dumps(measure()))
