"""Reads weights from a file into a model's tree, and writes them.

Files that can be read: the official .npz files (with names from before and
after Linen), .safetensors in timm's or Hugging Face's ViT layout, the published
Face Transformers after `python -m models.convert`, and all files that the
functions below write. No pickle is ever loaded.
"""

from __future__ import annotations

import logging
import math
import os
import pathlib
import zipfile
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import numpy as safetensors
from safetensors import safe_open

from models import described
from models import expansion
from models import layouts

Flat = layouts.Flat

_LOG = logging.getLogger("palimpsest")


def load(
  path: str | os.PathLike[str],
  template: Mapping[str, Any],
  *,
  head: Literal["fresh", "keep"] = "fresh",
  rows: Sequence[int] | None = None,
  new: int = 0,
  seed: int = 0,
  adapters: Literal["merged", "apart"] = "merged",
) -> dict[str, Any]:
  """Reads weights into a model's tree; no leaf may be missing or left over.

  Position embeddings are resized to the template's grid.

  Args:
    path: A .npz or .safetensors file.
    template: The model's parameters, as anything with shape and dtype, such as
      jax.eval_shape gives.
    head: "fresh": the file's head is dropped, with the pre_logits layer
      before it, and the tree's head is zero. "keep": the head is loaded.
    rows: With head="keep", the classes of the file's head that the model's
      head gets, in this order. None: all.
    new: With head="keep", how many of the model's last classes the file's head
      lacks; their columns are drawn, as in expansion.expand.
    seed: Seed of these columns.
    adapters: Whether the weights of a published Face Transformer contain its
      LoRA adapters; the file does not say. "merged": they do, as in the files
      of GS-LoRA's tasks, which are saved in evaluation mode; lora_A and lora_B
      are dropped. "apart": they do not, because the file was saved in training
      mode; B A / rank is added.

  Returns:
    The tree as numpy arrays on the host, in the template's types.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If the file has another format; a leaf is missing, left over or
      of another shape (the message lists all of them), holds other values than
      real numbers, or NaN or infinity; rows are not classes of the file; or
      head="fresh" for a head of cosines, which cannot start from zero.
  """
  if head not in ("fresh", "keep"):
    raise ValueError(f'init_head={head!r} must be "fresh" or "keep".')
  if adapters not in ("merged", "apart"):
    raise ValueError(
      f'Unknown adapters {adapters!r}; known: "merged", "apart".'
    )
  path = pathlib.Path(path)
  expected: dict[str, Any] = traverse_util.flatten_dict(template, sep="/")
  found = layouts.to_linen(
    _read(path, _arrays), expected, source=path, adapters=adapters
  )
  if rows is not None:
    found |= _pick(path, found, expected, rows=rows, head=head, new=new)
  if new and head == "keep":
    found = expansion.expand(
      found, expected, new, head=layouts.HEAD, seed=seed, source=path
    )
  if head == "fresh":
    found = _with_fresh_head(path, found, expected)
  sizes = described.Sizes.of(found)
  if layouts.POSITION in found and layouts.POSITION in expected:
    found[layouts.POSITION] = resize_positions(
      found[layouts.POSITION], expected[layouts.POSITION].shape[1]
    )
  _check(path, found, expected, sizes)
  _check_types(path, found)
  with np.errstate(over="ignore"):  # what becomes infinite is refused below
    flat = {k: np.asarray(found[k], leaf.dtype) for k, leaf in expected.items()}
  _check_finite(path, flat)
  return traverse_util.unflatten_dict(flat, sep="/")


def _with_fresh_head(
  path: pathlib.Path, found: Flat, expected: Mapping[str, Any]
) -> Flat:
  """Returns the leaves with zeros instead of the file's head."""
  dropped = ("head/", "pre_logits")
  found = {k: v for k, v in found.items() if not k.startswith(dropped)}
  if "head/kernel" in expected and "head/bias" not in expected:
    raise ValueError(
      f'{path} cannot be loaded with init_head="fresh": a fresh head is zero,'
      " and this model's head computes cosines, which need nonzero columns."
      ' Keep the file\'s head (init_head="keep"), or set model.head="softmax".'
    )
  for name, leaf in expected.items():
    if name.startswith("head/"):
      found[name] = np.zeros(leaf.shape, leaf.dtype)
  return found


def _pick(
  path: pathlib.Path,
  found: Flat,
  expected: Mapping[str, Any],
  *,
  rows: Sequence[int],
  head: str,
  new: int,
) -> Flat:
  """Returns the leaves of the file's head with the chosen classes only."""
  picked = [name for name in ("head/kernel", "head/bias") if name in found]
  if head != "keep":
    raise ValueError(
      "init_head_names chooses classes of the file's head, but"
      f' init_head={head!r} drops that head: set init_head="keep", or leave'
      " init_head_names out."
    )
  if "head/kernel" not in found:
    raise ValueError(
      f"{path} has no head from which init_head_names could choose classes: use"
      ' a file that contains a classifier\'s head, or init_head="fresh" without'
      " init_head_names."
    )
  count = found["head/kernel"].shape[-1]
  outside = sorted({row for row in rows if not 0 <= row < count})
  if outside:
    raise ValueError(
      f"init_head_names chooses the columns {outside}, but the head of {path}"
      f" has the columns 0 to {count - 1}: use the names of this head, one per"
      " line."
    )
  classes = expected["head/kernel"].shape[-1] - new
  if len(rows) != classes:
    raise ValueError(
      f"init_head_names chooses {len(rows)} columns of the head of {path} for a"
      f" model of {classes} classes: choose one column for each class."
    )
  return {name: found[name][..., list(rows)] for name in picked}


def settings(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
  """Returns the settings of a config that a file determines.

  As `described.settings`.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If the file has another format, or no variant has its sizes.
  """
  path = pathlib.Path(path)
  return described.settings(path, _read(path, _shapes))


def save_torch(
  path: str | os.PathLike[str], tree: Mapping[str, Any], layout: layouts.Layout
) -> None:
  """Writes a plain model as .safetensors under torch's names.

  Args:
    path: Target file; must end in .safetensors.
    tree: The parameters, with adapters merged and removed.
    layout: Layout of the model: layouts.TIMM or layouts.FACE.

  Raises:
    ValueError: If the suffix is another one, or the layout has no name for a
      leaf.
  """
  path = pathlib.Path(path)
  if path.suffix != ".safetensors":
    raise ValueError(f"Cannot write {path}: it must end in .safetensors.")
  flat = traverse_util.flatten_dict(tree, sep="/")
  flat = {name: np.asarray(array) for name, array in flat.items()}
  save(path, layouts.from_linen(flat, layout))


def save(path: str | os.PathLike[str], tree: Mapping[str, Any]) -> None:
  """Writes a tree atomically; a leaf's name is its path, joined by "/".

  Args:
    path: Target file; its suffix, .npz or .safetensors, is the format. In .npz,
      which has no bfloat16, such leaves become float32.
    tree: Nested dictionaries of arrays.

  Raises:
    ValueError: If the suffix is another one.
  """
  path = pathlib.Path(path)
  flat = traverse_util.flatten_dict(tree, sep="/")
  # safetensors writes the raw buffer, which must therefore be in C order.
  flat = {k: np.asarray(v, order="C") for k, v in flat.items()}
  # Write beside the target: a rename is atomic within one file system only.
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


def resize_positions(position: np.ndarray, num_tokens: int) -> np.ndarray:
  """Resizes a square grid of position embeddings linearly, corners aligned.

  New point i of n lies at i (g - 1) / (n - 1) of the old g. The class token's
  embedding, the first, stays as it is. Grids that are not square are returned
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


def _read(
  path: pathlib.Path, read: Callable[[pathlib.Path], dict[str, Any]]
) -> dict[str, Any]:
  """Reads a file by `_arrays` or `_shapes`; names what it cannot read."""
  if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"):
    raise ValueError(
      f"{path} is a pickle, and reading one runs whatever code it holds:"
      " convert it to .safetensors first"
      " (python -m models.convert IN OUT.safetensors)."
    )
  if path.suffix not in (".npz", ".safetensors"):
    raise ValueError(
      f"Cannot read {path}: known suffixes are .npz and .safetensors."
    )
  try:
    return read(path)
  except FileNotFoundError:
    raise
  except Exception as error:  # malformed files raise whatever a reader meets
    raise ValueError(
      f"{path} is not a {path.suffix} file of plain arrays "
      f"({type(error).__name__}: {error}): download or save it again."
    ) from error


def _arrays(path: pathlib.Path) -> Flat:
  """Returns the arrays of a file under the file's names."""
  if path.suffix == ".safetensors":
    return safetensors.load_file(path)
  # np.load would leave a file open that it cannot read.
  with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
    return dict(arrays)


def _shapes(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of a file's arrays; reads its headers only."""
  if path.suffix == ".safetensors":
    with safe_open(path, "np") as file:
      names = list(file.keys())
      return {name: tuple(file.get_slice(name).get_shape()) for name in names}
  shapes = {}
  with zipfile.ZipFile(path) as archive:
    for name in archive.namelist():
      with archive.open(name) as file:
        first = np.lib.format.read_magic(file) == (1, 0)
        header = np.lib.format.read_array_header_2_0
        if first:
          header = np.lib.format.read_array_header_1_0
        shapes[name.removesuffix(".npy")] = header(file)[0]
  return shapes


def _check_types(path: pathlib.Path, found: Flat) -> None:
  """Raises ValueError if arrays hold other values than real numbers."""
  wrong = {
    name: array.dtype
    for name, array in found.items()
    if not jnp.issubdtype(array.dtype, jnp.floating)
  }
  if wrong:
    name, dtype = next(iter(wrong.items()))
    raise ValueError(
      f"{path} holds {dtype} in {name!r} ({len(wrong)} such arrays); weights "
      "must be floating-point numbers: save them as float32."
    )


def _check_finite(path: pathlib.Path, flat: Flat) -> None:
  """Raises ValueError if arrays hold NaN or infinity."""
  wrong = [name for name, array in flat.items() if not np.isfinite(array).all()]
  if wrong:
    raise ValueError(
      f"{path} holds NaN or infinity in {wrong[0]!r} ({len(wrong)} such "
      "arrays): the file is damaged, or its training diverged; use another "
      "file."
    )


def _check(
  path: pathlib.Path,
  found: Flat,
  expected: Mapping[str, Any],
  theirs: described.Sizes | None,
) -> None:
  """Raises one ValueError that says what does not fit.

  Where the file is a model of other sizes, these are named, and the leaves are
  listed in the log only.
  """
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
  ours = described.Sizes.of(expected)
  if lines and ours and theirs and not ours.alike(theirs):
    _LOG.debug("\n".join(lines))
    remedy = "use a file of this model"
    if theirs.variant:
      remedy = f"set --my_config.model.variant={theirs.variant}, or {remedy}"
    raise ValueError(
      f"{path} is a {theirs}, and this config asks for {ours}: {remedy}."
    )
  if lines:
    raise ValueError(
      "\n".join([f"{path} does not fit the model:", *lines])
      + "\nBuild the model with the file's sizes, or use a file of this model;"
      ' init_head="fresh" drops the file\'s head and pre_logits.'
    )
