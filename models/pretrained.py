"""Weights on disk to the ViT's tree and back; the only file with torch names.

Read: the official .npz files (names from before and after Linen), safetensors
in timm's and in Hugging Face's ViT layout, and what `save` wrote. Nothing is
ever unpickled.
"""

from __future__ import annotations

import hashlib
import math
import os
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any
from typing import Literal

import numpy as np
from flax import traverse_util
from safetensors import numpy as safetensors

Flat = dict[str, np.ndarray]

_POSITION = "Transformer/posembed_input/pos_embedding"
_BLOCK = "Transformer/encoderblock_{}"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_0"

# Before Linen, Flax numbered the modules of a block together.
_PRE_LINEN = {
  "LayerNorm_2": "LayerNorm_1",
  "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
  "MlpBlock_3": "MlpBlock_0",
}

_TIMM_TENSORS = {"cls_token": "cls", "pos_embed": _POSITION}
_TIMM_MODULES = {
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
}

_HF_TENSORS = {
  "embeddings.cls_token": "cls",
  "embeddings.position_embeddings": _POSITION,
}
_HF_LAYER = "encoder.layer.{}"
_HF_MODULES = {
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
}


def load(
  path: str | os.PathLike[str],
  template: Mapping[str, Any],
  *,
  head: Literal["fresh", "keep"] = "fresh",
) -> dict[str, Any]:
  """Reads weights into the ViT's tree; all leaves must be there and fit.

  Position embeddings are resized to the template's grid.

  Args:
    path: A .npz or .safetensors file.
    template: The ViT's parameters, as anything with shape and dtype, such as
      jax.eval_shape gives.
    head: "fresh": the file's head is dropped, with the pre_logits layer
      before it, and the tree's head is zero. "keep": the head is loaded.

  Returns:
    The tree as numpy arrays on the host, in the template's types.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If the file is of another kind, or any leaf is missing, extra
      or of another shape; the message lists all of them.
  """
  if head not in ("fresh", "keep"):
    raise ValueError(f'Unknown head {head!r}; known: "fresh", "keep".')
  path = pathlib.Path(path)
  expected: dict[str, Any] = traverse_util.flatten_dict(template, sep="/")
  found = _to_linen(_read(path), expected, path)
  if head == "fresh":
    dropped = ("head/", "pre_logits")
    found = {k: v for k, v in found.items() if not k.startswith(dropped)}
    for name, leaf in expected.items():
      if name.startswith("head/"):
        found[name] = np.zeros(leaf.shape, leaf.dtype)
  if _POSITION in found and _POSITION in expected:
    found[_POSITION] = resize_positions(
      found[_POSITION], expected[_POSITION].shape[1]
    )
  _check(path, found, expected)
  flat = {k: np.asarray(found[k], leaf.dtype) for k, leaf in expected.items()}
  return traverse_util.unflatten_dict(flat, sep="/")


def save(path: str | os.PathLike[str], tree: Mapping[str, Any]) -> None:
  """Writes a tree under its own names, "/" between them, all or nothing.

  Args:
    path: Where; the suffix .npz or .safetensors says what is written. In .npz,
      which has no bfloat16, such leaves become float32.
    tree: Nested dictionaries of arrays.

  Raises:
    ValueError: If the suffix is another one.
  """
  path = pathlib.Path(path)
  flat = traverse_util.flatten_dict(tree, sep="/")
  # safetensors writes the buffer as it lies, so the order must be C.
  flat = {k: np.asarray(v, order="C") for k, v in flat.items()}
  # Beside the target: a rename is atomic within one file system only.
  part = path.with_name(f".{path.name}.{os.getpid()}.part")
  try:
    if path.suffix == ".npz":
      for name, array in flat.items():
        if array.dtype.kind == "V":
          flat[name] = array.astype(np.float32)
      with open(part, "wb") as file:
        np.savez(file, allow_pickle=False, **flat)
    elif path.suffix == ".safetensors":
      safetensors.save_file(flat, part)
    else:
      raise ValueError(
        f"Cannot write {path}: known suffixes are .npz and .safetensors."
      )
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def checksum(path: str | os.PathLike[str]) -> str:
  """Returns the SHA-256 of a file, in hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def resize_positions(position: np.ndarray, num_tokens: int) -> np.ndarray:
  """Resizes a square grid of position embeddings, linearly, ends aligned.

  New point i of n lies at i (g - 1) / (n - 1) of the old g. The class token's
  embedding, the first, stays as it is. Grids that are not square come back
  unchanged.

  Args:
    position: [1, 1 + g * g, D].
    num_tokens: 1 + n * n.

  Returns:
    [1, 1 + n * n, D], float32 where it was resized.
  """
  if position.ndim != 3 or position.shape[1] == num_tokens:
    return position
  old, new = math.isqrt(position.shape[1] - 1), math.isqrt(num_tokens - 1)
  if (1 + old**2, 1 + new**2) != (position.shape[1], num_tokens):
    return position
  points = np.linspace(0, old - 1, new)
  weights = np.stack(
    [np.interp(points, np.arange(old), row) for row in np.eye(old)], axis=1
  )  # [n, g]
  position = position.astype(np.float32)
  grid = position[0, 1:].reshape(old, old, -1)
  grid = np.einsum("ai,bj,ijd->abd", weights, weights, grid, optimize=True)
  grid = grid.reshape(1, new**2, -1).astype(np.float32)
  return np.concatenate([position[:, :1], grid], axis=1)


def _read(path: pathlib.Path) -> Flat:
  """Reads the arrays of a file under the file's names."""
  if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"):
    raise ValueError(
      f"{path} is a pickle, and reading one runs whatever code it holds:"
      " convert it to .safetensors where you trust it"
      " (safetensors.torch.save_file)."
    )
  if path.suffix == ".safetensors":
    return safetensors.load_file(path)
  if path.suffix != ".npz":
    raise ValueError(
      f"Cannot read {path}: known suffixes are .npz and .safetensors."
    )
  try:
    with np.load(path, allow_pickle=False) as file:
      return dict(file)
  except (ValueError, TypeError, zipfile.BadZipFile) as error:
    raise ValueError(
      f"{path} is no .npz file of plain arrays ({error}): fetch or save it"
      " again."
    ) from error


def _to_linen(found: Flat, expected: Mapping[str, Any], path) -> Flat:
  """Puts arrays under our names and in our layout; unknown names stay."""
  found = {k.removeprefix("vit."): v for k, v in found.items()}
  if any(name.startswith("embeddings.") for name in found):
    found = {k: v for k, v in found.items() if not k.startswith("pooler.")}
    pairs = _from_torch(found, expected, _HF_TENSORS, _HF_MODULES)
  elif "cls_token" in found or "patch_embed.proj.weight" in found:
    found = _split_qkv(found)
    pairs = _from_torch(found, expected, _TIMM_TENSORS, _TIMM_MODULES)
  else:
    pairs = [
      ("/".join(_PRE_LINEN.get(part, part) for part in name.split("/")), array)
      for name, array in found.items()
    ]
  names = [name for name, _ in pairs]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise ValueError(
      f"{path} holds these leaves under two names each: {twice}. Keep one."
    )
  return dict(pairs)


def _split_qkv(found: Flat) -> Flat:
  """Splits timm's joint projection [3 D, ...] into query, key and value."""
  split = {}
  for name, array in found.items():
    if ".attn.qkv." in name and array.shape[0] % 3 == 0:
      for part, piece in zip(
        ("query", "key", "value"), np.split(array, 3), strict=True
      ):
        split[name.replace(".qkv.", f".{part}.")] = piece
    else:
      split[name] = array
  return split


def _from_torch(
  found: Flat,
  expected: Mapping[str, Any],
  tensors: Mapping[str, str],
  modules: Mapping[str, str],
) -> list[tuple[str, np.ndarray]]:
  """Renames by table and turns torch's layouts into Linen's."""
  table = dict(tensors)
  for theirs, ours in modules.items():
    norm = "norm" in ours.lower()
    table[f"{theirs}.weight"] = f"{ours}/scale" if norm else f"{ours}/kernel"
    table[f"{theirs}.bias"] = f"{ours}/bias"
  pairs = []
  for name, array in found.items():
    layer = re.search(r"\.(\d+)\.", name)
    index = layer[1] if layer else ""
    general = name.replace(f".{index}.", ".{}.", 1) if layer else name
    if general not in table:
      pairs.append((name, array))
      continue
    ours = table[general].format(index)
    if ours.endswith("/kernel"):
      # Convolution [out, in, rows, columns]; dense [out, in].
      array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    leaf = expected.get(ours)
    # torch joins heads and head width in one axis.
    if (
      "Attention" in ours
      and leaf is not None
      and math.prod(leaf.shape) == array.size
    ):
      array = array.reshape(leaf.shape)
    pairs.append((ours, array))
  return pairs


def _check(
  path: pathlib.Path, found: Flat, expected: Mapping[str, Any]
) -> None:
  """Raises one error that lists all leaves that do not fit."""
  lines = []
  for name in sorted(found.keys() | expected.keys()):
    here = found[name].shape if name in found else None
    there = tuple(expected[name].shape) if name in expected else None
    if here is None:
      lines.append(f"  missing: {name}, model {there}")
    elif there is None:
      lines.append(f"  extra: {name}, file {here}")
    elif here != there:
      lines.append(f"  shape: {name}, file {here}, model {there}")
  if lines:
    raise ValueError(
      "\n".join([f"{path} does not fit the model:", *lines])
      + "\nBuild the model with the file's sizes, or take the file of this"
      ' model; head="fresh" drops the file\'s head and pre_logits.'
    )
