"""The config.json from which timm builds a ViT, and what it cannot express."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from models import vit

# (patch, width, mlp_dim, heads, depth) -> timm's name. Other sizes use the base
# model's name; the config gives timm all sizes as arguments in any case.
_NAMES = {
  (16, 192, 768, 3, 12): "vit_tiny_patch16_224",
  (16, 384, 1536, 6, 12): "vit_small_patch16_224",
  (32, 768, 3072, 12, 12): "vit_base_patch32_224",
  (16, 1024, 4096, 16, 24): "vit_large_patch16_224",
  (32, 1024, 4096, 16, 24): "vit_large_patch32_224",
  (14, 1280, 5120, 16, 32): "vit_huge_patch14_224",
}
_BASE = "vit_base_patch16_224"
_GELUS = {"tanh": "gelu_tanh", "erf": "gelu"}

# Evaluation chain -> timm's crop mode; others only resize.
CROPS = {"center_crop": "center", "reference": "squash"}

# Our "gap" averages all tokens, the class token included, after the last norm.
_POOLS = {
  "token": {"global_pool": "token"},
  "gap": {"global_pool": "avg", "pool_include_prefix": True, "fc_norm": False},
}

# Field of a ViT -> the values that timm has an argument for.
_EXPRESSED = {
  "classifier": tuple(_POOLS),
  "norm_pre_logits": (False,),
  "temperature": (1.0,),
  "block_epsilon": (1e-6,),
}


def obstacles(model: nn.Module) -> list[str]:
  """Returns the fields, or the class, that timm cannot express."""
  if not isinstance(model, vit.ViT):
    return [type(model).__name__]
  return [
    f"{name}={getattr(model, name)!r}"
    for name, known in _EXPRESSED.items()
    if getattr(model, name) not in known
  ]


def config(model: Any, preprocess: Mapping[str, Any]) -> dict[str, Any]:
  """Returns timm's config.json of a ViT without obstacles.

  Args:
    model: A vit.ViT.
    preprocess: "eval", "resize", "mean" and "std" of a run's config.
  """
  size, width = model.image_size, model.width
  ratio = model.mlp_dim / width
  if int(width * ratio) != model.mlp_dim:  # timm truncates the product
    ratio = math.nextafter(ratio, math.inf)
  sizes = (model.patch_size, width, model.mlp_dim, model.num_heads, model.depth)
  return {
    "architecture": _NAMES.get(sizes, _BASE),
    "num_classes": model.num_classes,
    "num_features": width,
    "model_args": {
      "img_size": size,
      "patch_size": model.patch_size,
      "embed_dim": width,
      "depth": model.depth,
      "num_heads": model.num_heads,
      "mlp_ratio": ratio,
      "act_layer": _GELUS[model.gelu],
      **_POOLS[model.classifier],
    },
    "pretrained_cfg": _pretrained(model, preprocess),
  }


def _pretrained(model: Any, preprocess: Mapping[str, Any]) -> dict[str, Any]:
  """Returns timm's pretrained_cfg: the head's size and the preprocessing."""
  size = model.image_size
  side = preprocess.get("resize") or size * 256 // 224
  crop = CROPS.get(preprocess["eval"])
  return {
    "input_size": [3, size, size],
    "fixed_input_size": True,
    "num_classes": model.num_classes,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
    "interpolation": "bilinear",
    "crop_pct": size / side if crop else 1.0,
    "crop_mode": crop or "squash",
    "mean": list(preprocess.get("mean") or (0.0, 0.0, 0.0)),
    "std": list(preprocess.get("std") or (1.0, 1.0, 1.0)),
  }
