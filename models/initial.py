"""Initial parameters of a model: read from a file, or drawn."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from libml import trees
from models import checksums
from models import lora
from models import pretrained


def load(
  model: nn.Module, path: str | os.PathLike[str], *, seed: int, **head: Any
) -> dict[str, Any]:
  """Returns a file's parameters, on the host; LoRA adapters are drawn.

  Args:
    model: The module.
    path: A .npz or .safetensors file.
    seed: Seed of the adapters and of new columns of the head.
    **head: As in pretrained.load: head, rows, new.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If the file does not fit the model, or is damaged: the files of
      an export have checksums.
  """
  rng = jax.random.key(seed)
  init = functools.partial(model.init, rng)
  template = jax.eval_shape(init, model.example_input())["params"]
  base, adapters = lora.split(template)
  checksums.check_listed(pathlib.Path(path))
  loaded = pretrained.load(path, base, **head, seed=seed)
  return lora.join(loaded, jax.device_get(lora.restart(adapters, rng)))


def draw(model: nn.Module, *, seed: int, heads: bool = False) -> dict[str, Any]:
  """Returns random parameters, on the device.

  Args:
    model: The module.
    seed: Of the draw.
    heads: Whether its heads are drawn, too, as in draw_heads, or 0.
  """
  key = jax.random.key(seed)
  init = functools.partial(model.init, key)
  params = jax.jit(init)(model.example_input())["params"]
  return draw_heads(params, key, model.class_heads) if heads else params


def draw_heads(params: Any, rng: jax.Array, heads: Sequence[str]) -> Any:
  """Returns the parameters with new heads, drawn like torch's linear layers.

  Kernel [D, C] and bias [C] are uniform in +-1 / sqrt(D). Columns of later
  tasks are not trained before their task, so one draw serves all tasks.

  Args:
    params: All parameters.
    rng: Typed key.
    heads: Branches of the heads.
  """
  flat = trees.flatten(params)
  names = [n for n in sorted(flat) if trees.holder(n, heads) is not None]
  drawn = {}
  for number, name in enumerate(names):
    key, leaf = jax.random.fold_in(rng, number), flat[name]
    width = flat[f"{name.rpartition('/')[0]}/kernel"].shape[0]
    bound = width**-0.5
    leaves = jax.random.uniform(key, leaf.shape, jnp.float32, -bound, bound)
    drawn[name] = leaves.astype(leaf.dtype)
  return trees.update(params, drawn)
