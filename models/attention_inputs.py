"""What a model's attentions read, as second moments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models import captures


def second_moments(
  model: Any, params: Any, batch: Mapping[str, Any]
) -> dict[str, jax.Array]:
  """Returns the uncentred second moments of every block's attention input.

  Sums, so that batches and devices add up; in float32 whatever the model's
  type.

  Args:
    model: Says what its attention_inputs are.
    params: Its parameters.
    batch: image [B, S, S, 3], mask bool [B].

  Returns:
    Block's short name -> sum of x x^T over the images that the mask keeps and
    all their tokens x (as the attention reads them), [D, D].
  """
  inputs = model.attention_inputs
  _, seen = captures.capture(model, params, batch, tuple(inputs.values()))
  mask = batch["mask"].astype(jnp.float32)
  moments = {}
  for block, branch in inputs.items():
    x = seen[branch].astype(jnp.float32) * mask[:, None, None]  # [B, T, D]
    moments[model.short(block)] = jnp.einsum(
      "btd,bte->de", x, x, precision=jax.lax.Precision.HIGHEST
    )
  return moments
