"""How a model names its parts, so that generic code needs no such names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libml import trees
from models import layouts


class Anatomy:
  """Base class of the linen modules; a model overrides what it has.

  A branch is the path of a module in the tree of parameters, its keys joined by
  "/", such as "encoder/block_3".
  """

  def example_input(self, batch_size: int = 1) -> dict[str, Any]:
    """Returns a batch of zeros that the model's call accepts."""
    raise NotImplementedError

  @property
  def class_heads(self) -> tuple[str, ...]:
    """Branches of the layers whose leaves' last axis is the classes."""
    return ()

  @property
  def backbone(self) -> tuple[str, ...]:
    """Top-level branches that compute the features."""
    return ()

  @property
  def stem(self) -> tuple[str, ...]:
    """Branches of the layers before the first block."""
    return ()

  @property
  def blocks(self) -> tuple[str, ...]:
    """Branches of the blocks, first to last; none lies in another."""
    return ()

  @property
  def attention_inputs(self) -> Mapping[str, str]:
    """Block -> the branch of the module whose output its attention reads."""
    return {}

  @property
  def attention_readers(self) -> tuple[str, ...]:
    """Branches of the dense layers that read an attention's input."""
    return ()

  @property
  def adaptable(self) -> Mapping[str, str]:
    """Kind -> pattern of the dense layers that can have LoRA adapters.

    "attention": projections of the attention's input (LoRA-Sub, InfLoRA);
    "mlp": both layers of the MLP (GS-LoRA).
    """
    return {}

  @property
  def torch_layout(self) -> layouts.Layout:
    """Layout of the weights in an export for torch."""
    raise NotImplementedError

  @property
  def lora_scale(self) -> float:
    """Factor of A B in the adapters; 1 for a model without adapters."""
    return getattr(getattr(self, "dense", None), "scale", 1.0)

  def short(self, name: str) -> str:
    """Returns a name without the branch that holds all blocks."""
    return name.removeprefix(f"{trees.root(self.blocks)}/")
