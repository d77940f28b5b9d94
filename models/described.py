"""What a file of weights says about the ViT that it belongs to."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from models import checksums
from models import layouts
from models import vit

# What a file says of its model.
KEYS = ("variant", "image_size", "gelu")

_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/")
_MLP = "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel"


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of a ViT that the shapes of its parameters tell.

  Attributes:
    width: D.
    depth: Number of blocks.
    mlp_dim: Hidden width of the blocks' MLPs.
    patch_size: Side of a patch, in pixels.
    image_size: Side of the images, in pixels; None: their grid is not square.
  """

  width: int
  depth: int
  mlp_dim: int
  patch_size: int
  image_size: int | None

  @classmethod
  def of(cls, flat: Mapping[str, Any]) -> Sizes | None:
    """Returns the sizes of leaves with our names; None: they are no ViT's."""
    patches, mlp = flat.get("embedding/kernel"), flat.get(_MLP)
    position = flat.get(layouts.POSITION)
    shapes: list[Any] = [
      getattr(x, "shape", ()) for x in (patches, mlp, position)
    ]
    if list(map(len, shapes)) != [4, 2, 3]:
      return None
    (patch, _, _, width), (_, mlp_dim), (_, tokens, _) = shapes
    side = math.isqrt(max(tokens - 1, 0))
    image = side * patch if side**2 == tokens - 1 else None
    depth = len({m[1] for name in flat if (m := _BLOCK.match(name))})
    return cls(width, depth, mlp_dim, patch, image)

  @property
  def variant(self) -> str | None:
    """The key of vit.VARIANTS that has these sizes; None: there is none."""
    ours = {k: v for k, v in dataclasses.asdict(self).items() if v}
    ours.pop("image_size", None)
    for name, fields in vit.VARIANTS.items():
      if ours.items() <= fields.items():
        return name
    return None

  def alike(self, other: Sizes) -> bool:
    """Whether the other's parameters fit, but for positions of an image."""
    return dataclasses.replace(self, image_size=other.image_size) == other

  def __str__(self) -> str:
    """Returns the sizes for people."""
    text = self.variant or (
      f"ViT of width {self.width}, MLP width {self.mlp_dim}, "
      f"{self.depth} blocks and patches of {self.patch_size} pixels"
    )
    return f"{text} at {self.image_size} pixels" if self.image_size else text


def settings(
  path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, Any]]:
  """Returns the settings of a config that a file of weights determines.

  The shapes say the sizes. The names say the GELU, where only one origin has
  them: torch's layouts have "erf", the official files "tanh". Files that this
  project writes have names of their own, and may have either; the config.json
  of an export says which, and how images are normalized. Layouts do not say
  that: timm has ViTs of both kinds.

  Args:
    path: The file.
    shapes: Of its arrays, under its own names.

  Returns:
    Section of a config -> key -> value: "model", without "gelu" where nothing
    says it, and for an export "preprocess".

  Raises:
    ValueError: The file is no ViT's, or of sizes that no variant has.
  """
  # Views of one number each: only their shapes are read.
  found = {k: np.broadcast_to(np.float32(0), s) for k, s in shapes.items()}
  flat = layouts.to_linen(found, {}, source=path, adapters="merged")
  sizes = Sizes.of(flat)
  if sizes is None or sizes.variant is None or sizes.image_size is None:
    what = f"is a {sizes}" if sizes else "does not have a ViT's parameters"
    raise ValueError(
      f"{path} {what}, but model.variant=None takes files of these variants "
      f"and square images: {', '.join(vit.VARIANTS)}. Use such a file."
    )
  told = {"variant": sizes.variant, "image_size": sizes.image_size}
  if layouts.POSITION not in found:
    told["gelu"] = "erf"
  elif flat.keys() != found.keys():
    told["gelu"] = "tanh"
  return {"model": told, **_of_export(path, told)}


def _of_export(
  path: pathlib.Path, told: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
  """Returns what the config.json of an export says; {}: it is no export's."""
  if not (path.parent / checksums.FILE).exists():
    return {}
  try:
    beside = json.loads((path.parent / "config.json").read_text())
    model, chain = beside["model"], beside["preprocess"]
    return {
      "model": {**told, "gelu": model["gelu"]},
      "preprocess": {
        name: chain[name] and tuple(chain[name]) for name in ("mean", "std")
      },
    }
  except (OSError, ValueError, KeyError, TypeError):
    return {}
