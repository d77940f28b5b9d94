"""LoRA adapters of methods: checks, draws, merges and reports."""

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
  """Raises ValueError for a model without adapters; the error proposes some.

  Args:
    model: Its `adaptable` says which layers can have adapters.
    kind: Kind of the proposed layers: "attention" or "mlp".
    rank: Proposed rank.
    alpha: Proposed alpha; None: a scale of 1.
  """
  if not isinstance(model.dense, lora.Lora):
    layers = model.adaptable[kind]
    raise ValueError(
      "This method trains LoRA adapters, but the model has none; set "
      f"model.lora to {dict(layers=layers, rank=rank, alpha=alpha)}."
    )


def check_trained(trainable: Any) -> None:
  """Raises ValueError unless all adapters are trained and their kernels frozen.

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
        f"The optimizer must train {name} and freeze {kernel} for this method; "
        "put a group with the pattern '.*/lora_[ab]' first in optimizer.groups "
        "and set the backbone's group to None."
      )


def check_grouping(grouping: str) -> None:
  """Raises ValueError unless grouping is a key of group_lasso.GROUPINGS."""
  if grouping not in group_lasso.GROUPINGS:
    raise ValueError(
      f"method.grouping={grouping!r} must be one of "
      f"{sorted(group_lasso.GROUPINGS)}."
    )


def kernels(model: Any) -> str:
  """Returns the pattern of the kernels that have an adapter."""
  return rf"(?:{model.dense.layers})/kernel"


def blocks(params: Any, model: Any) -> list[str]:
  """Returns the short names of the blocks with adapters, first to last.

  Raises:
    ValueError: An adapter that does not read the attention input of its block.
  """
  _, adapters = lora.split(params)
  readers, found = model.attention_readers, set()
  for name in trees.flatten(adapters):
    if trees.holder(name, readers) is None:
      layers = dict.fromkeys(path.rpartition("/")[2] for path in readers)
      raise ValueError(
        f"The adapter {name} does not read its block's attention input, whose "
        "subspace this method computes; let model.lora.layers match only "
        f"{', '.join(layers)}."
      )
    found.add(trees.holder(name, model.blocks))
  return [model.short(block) for block in model.blocks if block in found]


def restart(
  state: TrainState, data: StageData, *, name: str = "restart", **how: Any
) -> Any:
  """Returns the parameters with new adapters, drawn with the state's key.

  Args:
    state: What `before_stage` gets; its key is that of the previous stage.
    data: Holds the run's compiled functions.
    name: Name of the compiled function; another one for each `how`.
    **how: As in lora.restart.
  """

  def draw(adapters, rng):
    return lora.restart(adapters, rng, **how)

  base, adapters = lora.split(state.params)
  # Pass adapters only, so that frozen weights are not copied.
  adapters = data.compiled(name, draw)(adapters, state.rng)
  return lora.join(base, adapters)


def fold(params: Any, data: StageData, model: Any) -> Any:
  """Returns the parameters with W + scale A B as kernels, and B = 0.

  Args:
    params: All parameters.
    data: Holds the run's compiled functions.
    model: Knows the adapters' scale.
  """
  merged = data.compiled("fold", functools.partial(_folded, model=model))
  return trees.update(params, merged(params))


def _folded(params: Any, model: Any) -> dict[str, Any]:
  # Return only what changes, so that frozen weights are not copied.
  merged = trees.flatten(lora.merge(params, model.lora_scale))
  changed = rf"{kernels(model)}|.*/lora_b"
  return {k: v for k, v in merged.items() if re.fullmatch(changed, k)}


def merge(
  params: Any, data: StageData, model: Any
) -> tuple[Any, dict[str, Any]]:
  """Returns what `fold` returns, and scale A B of every adapter.

  Args:
    params: All parameters.
    data: Holds the run's compiled functions.
    model: Knows the adapters' scale.
  """

  def fold(params):
    return _folded(params, model), lora.deltas(params, model.lora_scale)

  merged, changes = data.compiled("merge", fold)(params)
  return trees.update(params, merged), changes


def report(params: Any, groups: LassoGroups, model: Any) -> dict[str, Any]:
  """Returns numbers that describe an edit.

  Args:
    params: All parameters, with adapters.
    groups: The lasso groups of the adapters.
    model: Knows the adapters' scale and the blocks.

  Returns:
    "group_norm" {lasso group: norm of its entries}, "change_norm" {block: norm
    of scale A B over its layers}, "groups" (number of lasso groups),
    "zero_groups" (how many are exactly zero), "touched_weights" (entries of the
    kernels whose A B is not 0), "adapter_weights" (nonzero entries of A and B).
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
  """Returns how far each block's kernels have moved since `start`.

  Args:
    params: All parameters, with adapters.
    start: The earlier adapters A_0 and B_0.
    model: Knows the adapters' scale and the blocks.

  Returns:
    {block: norm of scale (A B - A_0 B_0) over its layers}.
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
  """Returns a tree with the value of a layer's block for each adapted layer.

  Args:
    layers: Tree with at least one leaf in each adapted layer.
    values: Block's short name -> value.
    leaf: Name of the value in its layer: "lora_a" or "lora_b".
    model: Knows its blocks.
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
