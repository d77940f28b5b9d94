"""What a ViT's attentions read, as second moments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def second_moments(
  model: Any, params: Any, batch: Mapping[str, Any]
) -> dict[str, jax.Array]:
  """Returns the uncentred second moments of every block's attention input.

  Sums, so that batches and devices add up; in float32 whatever the model's
  type.

  Args:
    model: A vit.ViT.
    params: Its parameters.
    batch: image [B, S, S, 3], mask bool [B].

  Returns:
    Block name -> sum of x x^T over the images that the mask keeps and all their
    tokens x (after the block's first norm), [D, D].
  """
  _, seen = model.apply(
    {"params": params},
    batch,
    capture_intermediates=lambda module, _: module.name == "LayerNorm_0",
    mutable=["intermediates"],
  )
  mask = batch["mask"].astype(jnp.float32)
  moments = {}
  for block, captured in seen["intermediates"]["Transformer"].items():
    (x,) = captured["LayerNorm_0"]["__call__"]
    x = x.astype(jnp.float32) * mask[:, None, None]  # [B, T, D]
    moments[block] = jnp.einsum(
      "btd,bte->de", x, x, precision=jax.lax.Precision.HIGHEST
    )
  return moments
