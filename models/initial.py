"""Initial parameters of a model: read from a file, or drawn."""

from __future__ import annotations

import functools
import os
from typing import Any

import jax
from flax import linen as nn

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
    ValueError: If the file does not fit the model.
  """
  rng = jax.random.key(seed)
  init = functools.partial(model.init, rng)
  template = jax.eval_shape(init, model.example_input())["params"]
  base, adapters = lora.split(template)
  loaded = pretrained.load(path, base, **head, seed=seed)
  return lora.join(loaded, jax.device_get(lora.restart(adapters, rng)))


def draw(model: nn.Module, *, seed: int) -> dict[str, Any]:
  """Returns random parameters, on the device."""
  init = functools.partial(model.init, jax.random.key(seed))
  return jax.jit(init)(model.example_input())["params"]
