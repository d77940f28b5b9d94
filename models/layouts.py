"""Names and layouts of weights in other frameworks; no other file knows them.

Each layout is a table of torch names, which is used in both directions. In
torch a dense kernel is [out, in], a convolution's is [out, in, rows, columns],
and the heads of an attention share one axis.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Flat = dict[str, np.ndarray]

POSITION = "Transformer/posembed_input/pos_embedding"
HEAD = "head"
_EMBEDDING = "embedding/kernel"
_BLOCK = "Transformer/encoderblock_{}"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_0"
_PARTS = ("query", "key", "value")

# Name before Linen -> name now: Flax then numbered a block's modules in one
# sequence, now it numbers those of each class.
_PRE_LINEN = {
  "LayerNorm_2": "LayerNorm_1",
  "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
  "MlpBlock_3": "MlpBlock_0",
}

# Face Transformers with larger patches cut them with an overlapping window.
_WHOLE_PATCH = 8


@dataclasses.dataclass(frozen=True)
class Layout:
  """Torch's names of a ViT's parameters.

  Attributes:
    tensors: Name of a tensor in torch -> our name.
    modules: Name of a module in torch -> ours, "{}" for the number of a block;
      one that ends in "query", "key" or "value" stands for a part of `fused`.
    fused: The module that computes query, key and value; "": there is none.
    flat_patches: Whether the patch embedding is a dense layer.
  """

  tensors: Mapping[str, str]
  modules: Mapping[str, str]
  fused: str = ""
  flat_patches: bool = False

  def names(self) -> dict[str, str]:
    """Returns {their name: ours} with "{}" for the number of a block."""
    table = dict(self.tensors)
    for theirs, ours in self.modules.items():
      norm = "norm" in ours.lower()
      table[f"{theirs}.weight"] = f"{ours}/scale" if norm else f"{ours}/kernel"
      table[f"{theirs}.bias"] = f"{ours}/bias"
    return table


TIMM = Layout(
  tensors={"cls_token": "cls", "pos_embed": POSITION},
  modules={
    "patch_embed.proj": "embedding",
    "blocks.{}.norm1": f"{_BLOCK}/LayerNorm_0",
    "blocks.{}.attn.query": f"{_ATTENTION}/query",
    "blocks.{}.attn.key": f"{_ATTENTION}/key",
    "blocks.{}.attn.value": f"{_ATTENTION}/value",
    "blocks.{}.attn.proj": f"{_ATTENTION}/out",
    "blocks.{}.norm2": f"{_BLOCK}/LayerNorm_1",
    "blocks.{}.mlp.fc1": f"{_BLOCK}/MlpBlock_0/Dense_0",
    "blocks.{}.mlp.fc2": f"{_BLOCK}/MlpBlock_0/Dense_1",
    "norm": "Transformer/encoder_norm",
    "head": "head",
  },
  fused="attn.qkv",
)

_HF_LAYER = "encoder.layer.{}"
HUGGING_FACE = Layout(
  tensors={
    "embeddings.cls_token": "cls",
    "embeddings.position_embeddings": POSITION,
  },
  modules={
    "embeddings.patch_embeddings.projection": "embedding",
    f"{_HF_LAYER}.layernorm_before": f"{_BLOCK}/LayerNorm_0",
    f"{_HF_LAYER}.attention.attention.query": f"{_ATTENTION}/query",
    f"{_HF_LAYER}.attention.attention.key": f"{_ATTENTION}/key",
    f"{_HF_LAYER}.attention.attention.value": f"{_ATTENTION}/value",
    f"{_HF_LAYER}.attention.output.dense": f"{_ATTENTION}/out",
    f"{_HF_LAYER}.layernorm_after": f"{_BLOCK}/LayerNorm_1",
    f"{_HF_LAYER}.intermediate.dense": f"{_BLOCK}/MlpBlock_0/Dense_0",
    f"{_HF_LAYER}.output.dense": f"{_BLOCK}/MlpBlock_0/Dense_1",
    "layernorm": "Transformer/encoder_norm",
    "classifier": "head",
  },
)

_FACE_LAYER = "transformer.layers.{}"
FACE = Layout(
  tensors={"cls_token": "cls", "pos_embedding": POSITION},
  modules={
    "patch_to_embedding": "embedding",
    f"{_FACE_LAYER}.0.fn.norm": f"{_BLOCK}/LayerNorm_0",
    f"{_FACE_LAYER}.0.fn.fn.query": f"{_ATTENTION}/query",
    f"{_FACE_LAYER}.0.fn.fn.key": f"{_ATTENTION}/key",
    f"{_FACE_LAYER}.0.fn.fn.value": f"{_ATTENTION}/value",
    f"{_FACE_LAYER}.0.fn.fn.to_out.0": f"{_ATTENTION}/out",
    f"{_FACE_LAYER}.1.fn.norm": f"{_BLOCK}/LayerNorm_1",
    f"{_FACE_LAYER}.1.fn.fn.net.0": f"{_BLOCK}/MlpBlock_0/Dense_0",
    f"{_FACE_LAYER}.1.fn.fn.net.3": f"{_BLOCK}/MlpBlock_0/Dense_1",
    "mlp_head.0": "Transformer/encoder_norm",
    "loss": "head",
  },
  fused="fn.fn.to_qkv",
  flat_patches=True,
)


# torchvision's names -> timm's.
_TORCHVISION = {
  r"class_token": "cls_token",
  r"encoder\.pos_embedding": "pos_embed",
  r"conv_proj\.(.*)": r"patch_embed.proj.\1",
  r"encoder\.layers\.encoder_layer_(\d+)\.(.*)": r"blocks.\1.\2",
  r"(.*)\.ln_([12])\.(.*)": r"\1.norm\2.\3",
  r"(.*)\.self_attention\.in_proj_(.*)": r"\1.attn.qkv.\2",
  r"(.*)\.self_attention\.out_proj\.(.*)": r"\1.attn.proj.\2",
  r"(.*)\.mlp\.(?:linear_1|0)\.(.*)": r"\1.mlp.fc1.\2",
  r"(.*)\.mlp\.(?:linear_2|3)\.(.*)": r"\1.mlp.fc2.\2",
  r"encoder\.ln\.(.*)": r"norm.\1",
  r"heads\.head\.(.*)": r"head.\1",
}


def _from_torchvision(name: str) -> str:
  for theirs, timms in _TORCHVISION.items():
    name = re.sub(f"^{theirs}$", timms, name)
  return name


def to_linen(
  found: Flat, expected: Mapping[str, Any], *, source: object, adapters: str
) -> Flat:
  """Returns arrays under our names and in our layout; unknown names are kept.

  Args:
    found: Arrays under the file's names.
    expected: Leaves of the model by name, as anything with a shape.
    source: The file, for errors.
    adapters: "merged" or "apart", see pretrained.load.

  Raises:
    ValueError: If two names stand for one leaf, or an adapter lacks its weight
      or its second matrix.
  """
  # torch's DataParallel puts "module." before every name.
  found = {
    k.removeprefix("module.").removeprefix("vit."): v for k, v in found.items()
  }
  if "class_token" in found:
    found = {_from_torchvision(name): array for name, array in found.items()}
  if any(name.startswith("embeddings.") for name in found):
    found = {k: v for k, v in found.items() if not k.startswith("pooler.")}
    pairs = _from_torch(found, expected, HUGGING_FACE)
  elif any(name.startswith("patch_to_embedding.") for name in found):
    found = _without_adapters(found, source, adapters)
    pairs = _from_torch(found, expected, FACE)
  elif "cls_token" in found or "patch_embed.proj.weight" in found:
    pairs = _from_torch(found, expected, TIMM)
  else:
    pairs = [
      ("/".join(_PRE_LINEN.get(part, part) for part in name.split("/")), array)
      for name, array in found.items()
    ]
  names = [name for name, _ in pairs]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise ValueError(
      f"{source} holds these leaves under two names each: {twice}. Remove one"
      " of the two names."
    )
  return dict(pairs)


def from_linen(flat: Flat, layout: Layout) -> Flat:
  """Returns arrays under a layout's names, in torch's order of axes.

  Args:
    flat: A plain ViT's leaves by name, "/" between its parts.
    layout: TIMM or FACE.

  Raises:
    ValueError: If the layout has no name for a leaf.
  """
  table = {ours: theirs for theirs, ours in layout.names().items()}
  strange, found = [], {}
  for name, array in flat.items():
    block = re.search(r"encoderblock_(\d+)/", name)
    index = block[1] if block else ""
    general = name.replace(f"encoderblock_{index}/", "encoderblock_{}/")
    if general not in table:
      strange.append(name)
      continue
    theirs = table[general].format(index)
    if "Attention" in name:
      joined = {"out": (-1, array.shape[-1])}.get(
        name.split("/")[-2], (len(array), -1)
      )
      array = array.reshape(joined if name.endswith("/kernel") else -1)
    if name == _EMBEDDING:
      array = _patch_to_torch(array, layout)
    elif name.endswith("/kernel"):
      array = array.T
    found[theirs] = array
  if strange:
    raise ValueError(
      f"Torch's layout has no names for {sorted(strange)}: merge adapters first"
      " (lora.merge, lora.split), and leave out parameters of the method."
    )
  return _fuse(found, layout)


def _fuse(found: Flat, layout: Layout) -> Flat:
  """Joins query, key and value where the layout has one module for them."""
  fused = dict(found)
  stem = layout.fused.removesuffix("qkv").removesuffix("to_")
  for name in found:
    if layout.fused and f".{stem}query." in name:
      parts = [fused.pop(name.replace("query", part)) for part in _PARTS]
      joint = name.replace(f"{stem}query", layout.fused)
      fused[joint] = np.concatenate(parts)
  return fused


def _split(found: Flat, layout: Layout) -> Flat:
  """Splits a joint projection [3 D, ...] into query, key and value."""
  split = {}
  stem = layout.fused.removesuffix("qkv").removesuffix("to_")
  for name, array in found.items():
    if (
      layout.fused
      and f".{layout.fused}." in name
      and array.shape[0] % len(_PARTS) == 0
    ):
      for part, piece in zip(_PARTS, np.split(array, 3), strict=True):
        split[name.replace(layout.fused, f"{stem}{part}")] = piece
    else:
      split[name] = array
  return split


def _from_torch(
  found: Flat, expected: Mapping[str, Any], layout: Layout
) -> list[tuple[str, np.ndarray]]:
  """Returns (our name, array in Linen's layout) for each array of torch."""
  table = layout.names()
  pairs = []
  for name, array in _split(found, layout).items():
    layer = re.search(r"\.(\d+)\.", name)
    general, index = name, ""
    if name not in table and layer:
      index = layer[1]
      general = name.replace(f".{index}.", ".{}.", 1)
    if general not in table:
      pairs.append((name, array))
      continue
    ours = table[general].format(index)
    if ours == _EMBEDDING:
      array = _patch_to_linen(array, layout)
    elif ours.endswith("/kernel"):
      array = array.T
    leaf = expected.get(ours)
    if (
      "Attention" in ours
      and leaf is not None
      and math.prod(leaf.shape) == array.size
    ):
      array = array.reshape(leaf.shape)
    pairs.append((ours, array))
  return pairs


def _patch_to_linen(array: np.ndarray, layout: Layout) -> np.ndarray:
  """Returns the kernel [rows, columns, in, out] of a patch embedding."""
  if array.ndim == 4:
    return array.transpose(2, 3, 1, 0)
  side = math.isqrt(array.shape[1] // 3)
  if not layout.flat_patches or side * side * 3 != array.shape[1]:
    return array.T
  if side > _WHOLE_PATCH:  # unfolded channel by channel
    return array.reshape(-1, 3, side, side).transpose(2, 3, 1, 0)
  return array.reshape(-1, side, side, 3).transpose(1, 2, 3, 0)


def _patch_to_torch(kernel: np.ndarray, layout: Layout) -> np.ndarray:
  """Undoes _patch_to_linen."""
  if not layout.flat_patches:
    return kernel.transpose(3, 2, 0, 1)
  channel_first = kernel.shape[0] > _WHOLE_PATCH
  order = (3, 2, 0, 1) if channel_first else (3, 0, 1, 2)
  return kernel.transpose(order).reshape(kernel.shape[3], -1)


def _without_adapters(found: Flat, source: object, adapters: str) -> Flat:
  """Drops loralib's adapters, or adds their product to the weights first."""
  plain = {k: v for k, v in found.items() if ".lora_" not in k}
  for name, a in found.items():
    if not name.endswith(".lora_A") or adapters == "merged":
      continue
    module = name.removesuffix(".lora_A")
    weight = plain.get(f"{module}.weight")
    b = found.get(f"{module}.lora_B")
    if weight is None or b is None:
      raise ValueError(
        f"{source} has {name}, but not its weight or its lora_B: use a complete"
        " checkpoint."
      )
    rank = b.shape[1]
    # A projection with several adapters stacks them in both matrices.
    change = [
      b_part @ a_part
      for a_part, b_part in zip(
        np.split(a, len(a) // rank), np.split(b, len(a) // rank), strict=True
      )
    ]
    weight = weight + (np.concatenate(change) / rank).astype(weight.dtype)
    plain[f"{module}.weight"] = weight
  return plain
