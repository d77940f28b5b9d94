"""What methods with LoRA adapters check, and do between tasks."""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from libml import trees
from libml.optim import group_lasso
from libml.optim.group_lasso import LassoGroups
from libml.pipeline.stage_data import StageData
from libml.train.train_state import TrainState
from models import lora


def check_model(
  model: Any,
  kind: str = "attention",
  *,
  rank: int = 10,
  alpha: float | None = None,
) -> None:
  """Raises ValueError for a model without adapters; proposes some.

  Args:
    model: Says which layers of which kind are adaptable.
    kind: Of the proposed layers.
    rank: Proposed.
    alpha: Proposed.
  """
  if not isinstance(model.dense, lora.Lora):
    layers = model.adaptable[kind]
    raise ValueError(
      "This method trains LoRA adapters, and the model has none; set "
      f"model.lora to {dict(layers=layers, rank=rank, alpha=alpha)}."
    )


def check_trained(trainable: Any) -> None:
  """Raises ValueError unless adapters are trained, and no kernel beside them.

  Args:
    trainable: Booleans, of the parameters' structure.
  """
  flat = trees.flatten(trainable)
  for name, trained in flat.items():
    if not re.search("/lora_[ab]$", name):
      continue
    kernel = re.sub("lora_[ab]$", "kernel", name)
    if not trained or flat[kernel]:
      raise ValueError(
        f"This method trains {name} and freezes {kernel}; put a group with the "
        "pattern '.*/lora_[ab]' first in optimizer.groups and set the "
        "backbone's to None."
      )


def check_grouping(grouping: str) -> None:
  """Raises ValueError for no row of group_lasso.GROUPINGS."""
  if grouping not in group_lasso.GROUPINGS:
    raise ValueError(
      f"method.grouping={grouping!r} must be one of "
      f"{sorted(group_lasso.GROUPINGS)}."
    )


def kernels(model: Any) -> str:
  """Returns the pattern of the kernels beside adapters."""
  return rf"(?:{model.dense.layers})/kernel"


def blocks(params: Any, model: Any) -> list[str]:
  """Returns the short names of the blocks with adapters, first to last.

  Raises:
    ValueError: An adapter that does not read its block's attention input.
  """
  _, adapters = lora.split(params)
  readers, found = model.attention_readers, set()
  for name in trees.flatten(adapters):
    if trees.holder(name, readers) is None:
      layers = dict.fromkeys(path.rpartition("/")[2] for path in readers)
      raise ValueError(
        f"The adapter at {name} does not read the attention's input, of which "
        "this method finds the subspace; model.lora.layers may match "
        f"{', '.join(layers)} only."
      )
    found.add(trees.holder(name, model.blocks))
  return [model.short(block) for block in model.blocks if block in found]


def restart(
  state: TrainState, data: StageData, *, name: str = "restart", **how: Any
) -> Any:
  """Returns the parameters with new adapters, drawn by the state's key.

  Args:
    state: The last stage's, whose steps used its key with small numbers.
    data: Holds the run's compiled functions.
    name: Of the compiled one.
    **how: As in lora.restart.
  """

  def draw(adapters, rng):
    return lora.restart(adapters, rng, **how)

  base, adapters = lora.split(state.params)
  # Adapters alone pass through: frozen weights stay where they are.
  adapters = data.compiled(name, draw)(adapters, state.rng)
  return lora.join(base, adapters)


def fold(params: Any, data: StageData, model: Any) -> Any:
  """Returns the parameters with merged adapters, whose B is then 0.

  Args:
    params: All parameters.
    data: Holds the run's compiled functions.
    model: Has the adapters' scale.
  """
  merged = data.compiled("fold", functools.partial(_folded, model=model))
  return trees.update(params, merged(params))


def _folded(params: Any, model: Any) -> dict[str, Any]:
  # Only what changes is returned: frozen weights stay where they are.
  merged = trees.flatten(lora.merge(params, model.lora_scale))
  changed = rf"{kernels(model)}|.*/lora_b"
  return {k: v for k, v in merged.items() if re.fullmatch(changed, k)}


def merge(
  params: Any, data: StageData, model: Any
) -> tuple[Any, dict[str, Any]]:
  """Returns the parameters with merged adapters, and what was added.

  Args:
    params: All parameters.
    data: Holds the run's compiled functions.
    model: Has the adapters' scale.
  """

  def fold(params):
    return _folded(params, model), lora.deltas(params, model.lora_scale)

  merged, changes = data.compiled("merge", fold)(params)
  return trees.update(params, merged), changes


def report(params: Any, groups: LassoGroups, model: Any) -> dict[str, Any]:
  """Returns what an edit is, in numbers for people.

  Args:
    params: With adapters.
    groups: Of the adapters.
    model: Has the adapters' scale and the blocks.

  Returns:
    "group_norm" {group: norm of its entries}, "change_norm" {block: norm of
    what its adapters add}, "groups", "zero_groups" (exactly zero),
    "touched_weights" (entries of kernels to which something is added),
    "adapter_weights" (entries of adapters that are not 0).
  """
  blocks = group_lasso.by_branch(model.blocks)
  found = jax.device_get(_count(params, groups, blocks, model.lora_scale))
  norms = {
    key: {model.short(name): float(norm) for name, norm in found[key].items()}
    for key in ("group_norm", "change_norm")
  }
  return {
    **norms,
    "groups": len(found["zero"]),
    "zero_groups": sum(map(int, found["zero"].values())),
    "touched_weights": sum(map(int, found["touched"])),
    "adapter_weights": sum(map(int, found["adapter"])),
  }


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _count(params, groups, blocks, scale):
  _, adapters = lora.split(params)
  changes = lora.deltas(params, scale)
  return {
    "group_norm": group_lasso.norms(adapters, groups),
    "change_norm": group_lasso.norms(changes, blocks),
    "zero": group_lasso.zeros(adapters, groups),
    "touched": [jnp.any(c != 0) * c.size for c in jax.tree.leaves(changes)],
    "adapter": [jnp.sum(a != 0) for a in jax.tree.leaves(adapters)],
  }


def moved(params: Any, start: Any, model: Any) -> dict[str, float]:
  """Returns how far adapters have moved what each block computes.

  Args:
    params: With adapters.
    start: The adapters before.
    model: Has the adapters' scale and the blocks.

  Returns:
    Block -> norm of scale (A B - A_0 B_0) over its layers.
  """
  blocks = group_lasso.by_branch(model.blocks)
  found = jax.device_get(_moved(params, start, blocks, model.lora_scale))
  return {model.short(name): float(norm) for name, norm in found.items()}


@functools.partial(jax.jit, static_argnums=(2, 3))
def _moved(params, start, blocks, scale):
  base, _ = lora.split(params)
  now, before = (
    lora.deltas(tree, scale) for tree in (params, lora.join(base, start))
  )
  changes = jax.tree.map(jnp.subtract, now, before)
  return group_lasso.norms(changes, blocks)


def edit(params: Any, groups: LassoGroups, scale: float) -> dict[str, Any]:
  """Returns the adapters by name, "zero/GROUP" flags, and their "scale"."""
  _, adapters = lora.split(params)
  zero = group_lasso.zeros(adapters, groups)
  return {
    **trees.flatten(adapters),
    **{f"zero/{group}": flag for group, flag in zero.items()},
    "scale": jnp.float32(scale),
  }


def by_parameter(
  layers: Any, values: Mapping[str, jax.Array], leaf: str, *, model: Any
) -> dict[str, Any]:
  """Returns each layer's block's value, under a leaf of the layer.

  Args:
    layers: Tree with a leaf for each adapted layer.
    values: Block's short name -> value.
    leaf: "lora_a" or "lora_b".
    model: Says what its blocks are.
  """
  found: dict[str, Any] = {}
  for name in trees.flatten(layers):
    place = found
    for part in name.split("/")[:-1]:
      place = place.setdefault(part, {})
    block = trees.holder(name, model.blocks)
    assert block is not None, name  # as `blocks` has checked
    place[leaf] = values[model.short(block)]
  return found
