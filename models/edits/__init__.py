"""Edits of past requests: described, undone and reapplied.

Request t stores its adapters in WORKDIR/edits/stage_T.npz. After all requests
the model has the kernels

  W = W_0 + sum_t s_t A_t B_t

Every term can be subtracted again, in any order, whatever requests came later.
Other parameters that a method trained, such as a head, are not undone.

`python -m models.edits WORKDIR` shows a run's edits and undoes them.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from libml import trees
from models import checksums
from models import lora

_ZERO = "zero/"

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Edit:
  """What one request did to the model.

  Attributes:
    adapters: `lora_a` [D_in, R] and `lora_b` [R, D_out] under the names of
      their layers, as lora.split returns them.
    scale: Factor of A B.
    zero: Lasso group -> whether all its entries are exactly 0; empty if the
      method has no lasso groups.
    classes: Ids of the classes that the request forgot.
  """

  adapters: Params
  scale: float
  zero: Mapping[str, bool]
  classes: tuple[int, ...]

  def changes(self) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each kernel's name and scale A B, float64 [D_in, D_out]."""
    return lora.products(jax.tree.map(_float64, self.adapters), self.scale)


def _float64(array: Any) -> np.ndarray:
  return np.asarray(array, np.float64)


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    # np.load would leave a file open that it cannot read.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
      return dict(arrays)
  except FileNotFoundError:
    raise
  except Exception as error:  # malformed files raise whatever a reader meets
    raise ValueError(
      f"{path} is not an .npz file of plain arrays ({type(error).__name__}: "
      f"{error}): repeat the run that wrote it."
    ) from error


def read(path: str | os.PathLike[str]) -> Edit:
  """Reads the edit of one request.

  Args:
    path: WORKDIR/edits/stage_T.npz: adapters under their parameters' names,
      "scale", "classes" and "zero/GROUP".

  Raises:
    FileNotFoundError: No such file.
    ValueError: The file is not an edit, the lora_a and lora_b of a layer do not
      fit together, or a lasso group marked as zero is not zero.
  """
  path = pathlib.Path(path)
  found = _arrays(path)
  lines = [f"missing: {k}" for k in ("scale", "classes") if k not in found]
  adapters = {k: v for k, v in found.items() if k.endswith(lora.ADAPTER)}
  for layer in sorted({name.rpartition("/")[0] for name in adapters}):
    pair = [adapters.get(f"{layer}/{leaf}") for leaf in lora.ADAPTER]
    shapes = [None if leaf is None else leaf.shape for leaf in pair]
    if not _fit(*shapes):
      lines.append(f"{layer}: lora_a {shapes[0]}, lora_b {shapes[1]}")
  lines += _misfits(found)
  lines += [f"{k}: not finite" for k, v in found.items() if not _finite(v)]
  if lines or not adapters:
    raise ValueError(
      f"{path} is not an edit: {'; '.join(lines) or 'it holds no adapters'}. "
      "Use a stage_T.npz that a run wrote to WORKDIR/edits."
    )
  edit = Edit(
    adapters=trees.unflatten(adapters),
    scale=float(found["scale"]),
    zero={
      name.removeprefix(_ZERO): bool(flag)
      for name, flag in found.items()
      if name.startswith(_ZERO)
    },
    classes=tuple(int(label) for label in found["classes"]),
  )
  for group, numbers in summary(edit)["groups"].items():
    if numbers["zero"] and numbers["change"]:
      raise ValueError(
        f"{path} marks lasso group {group!r} as zero, but the group changes "
        f"weights (by {numbers['change']:.3g}): the file was altered. Use the "
        "file that the run wrote."
      )
  return edit


def _misfits(found: Mapping[str, np.ndarray]) -> list[str]:
  """Returns a line for each of scale, classes and flags of another kind."""
  kinds = {"scale": ("fiu", 0), "classes": ("iu", 1)}
  kinds |= {name: ("b", 0) for name in found if name.startswith(_ZERO)}
  kinds |= {name: ("f", 2) for name in found if name.endswith(lora.ADAPTER)}
  lines = []
  for name, (kind, ndim) in kinds.items():
    array = found.get(name)
    if array is None:
      continue
    # NumPy's kind of bfloat16 is "V".
    if array.dtype.kind not in kind.replace("f", "fV") or array.ndim != ndim:
      lines.append(f"{name}: {array.dtype} of shape {array.shape}")
    elif name == "classes" and (array < 0).any():
      lines.append(f"{name}: {array.min()} is no class")
  return lines


def _finite(array: np.ndarray) -> bool:
  return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _fit(a: tuple[int, ...] | None, b: tuple[int, ...] | None) -> bool:
  return bool(a and b and len(a) == len(b) == 2 and a[1] == b[0])


def read_all(workdir: str | os.PathLike[str]) -> dict[int, Edit]:
  """Reads the edits of a run, by the number of their request, from 0.

  Raises:
    FileNotFoundError: The run has no edits.
    ValueError: As for `read`, or a file is not the one that the run wrote.
  """
  folder = pathlib.Path(workdir) / "edits"
  numbers = {}
  for path in folder.glob("stage_*.npz"):
    if match := re.fullmatch(r"stage_(\d+)", path.stem):
      numbers[int(match[1])] = path
  if not numbers:
    raise FileNotFoundError(
      f"No edits in {folder}; give the workdir of a run that forgets with "
      "adapters, such as a run of configs/digits_gs_lora.py."
    )
  _check_written(folder, *(path.name for path in numbers.values()))
  return {number: read(numbers[number]) for number in sorted(numbers)}


def _check_written(folder: pathlib.Path, *names: str) -> int | None:
  """Checks files against their checksums; returns that of the run's weights."""
  try:
    return checksums.check(folder, *names).get("weights")
  except FileNotFoundError as error:
    raise ValueError(
      f"{error.filename} is missing, so nothing says whether {folder} is as a "
      "run wrote it. Use a workdir of this version: earlier ones wrote none."
    ) from None


def summary(edit: Edit) -> dict[str, Any]:
  """Returns numbers that describe an edit.

  An adapter belongs to a lasso group if its name contains the parts of the
  group's name in the same order; a block's name covers all of its adapters.

  Returns:
    "classes"; "weights_changed", the number of entries of the kernels whose A B
    is not all zero; "adapter_entries", the number of nonzero entries of A and
    B; "norm", the l2 norm of all scale A B; "groups", {lasso group: "zero";
    "norm", the l2 norm of its entries; "change", that of scale A B in the
    layers it belongs to}; norm and change are None for a group without
    adapters.
  """
  flat = trees.flatten(edit.adapters)
  squares, changed = {}, 0
  for kernel, change in edit.changes():
    squares[kernel.removesuffix("/kernel")] = float(np.sum(change**2))
    changed += change.size if change.any() else 0
  groups = {}
  for group, zero in edit.zero.items():
    names = [name for name in flat if _belongs(name, group)]
    layers = {name.rpartition("/")[0] for name in names}
    norm = math.sqrt(sum(np.sum(_float64(flat[n]) ** 2) for n in names))
    change = math.sqrt(sum(squares[layer] for layer in layers))
    groups[group] = {
      "zero": zero,
      "norm": norm if names else None,
      "change": change if names else None,
    }
  return {
    "classes": list(edit.classes),
    "weights_changed": changed,
    "adapter_entries": sum(int(np.count_nonzero(x)) for x in flat.values()),
    "norm": math.sqrt(sum(squares.values())),
    "groups": groups,
  }


def _belongs(name: str, group: str) -> bool:
  parts = iter(name.split("/"))
  return all(part in parts for part in group.split("/"))


def apply(
  params: Params, edits: Iterable[Edit], times: float = 1.0
) -> dict[str, Any]:
  """Returns the tree with kernels W + times * sum of scale A B.

  The sum is computed in float64 and rounded once, so the order of the edits can
  change the last bit at most. A kernel that no edit changes is returned as the
  same array.

  Args:
    params: All parameters, on the host; adapters among them stay as they are.
    edits: Some edits of the same run.
    times: Factor of the sum; -1 undoes the edits.

  Raises:
    ValueError: The edits do not fit the parameters.
  """
  flat, edits = trees.flatten(params), list(edits)
  sums: dict[str, np.ndarray] = {}
  lines = set()
  for edit in edits:
    for name, change in edit.changes():
      shape = flat[name].shape if name in flat else None
      if shape is None or math.prod(shape) != change.size:
        lines.add(f"  {name}: edit {change.shape}, model {shape}")
      elif change.any():
        sums[name] = sums.get(name, 0.0) + change
  if lines:
    raise ValueError(
      "\n".join(["The edits do not fit the model:", *sorted(lines)])
      + "\nUse weights and edits of the same run."
    )
  for name, change in sums.items():
    kernel = flat[name]
    edited = _float64(kernel) + times * change.reshape(kernel.shape)
    flat[name] = edited.astype(kernel.dtype)
  return trees.unflatten(flat)


def undo(
  workdir: str | os.PathLike[str], requests: Iterable[int]
) -> dict[str, Any]:
  """Returns a run's exported parameters with some requests undone.

  Args:
    workdir: Of the run; its export and its edits are read.
    requests: Numbers of the requests to undo, from 0.

  Raises:
    FileNotFoundError: There are no edits, or no export.
    ValueError: An unknown request, or edits and an export that are not those of
      one run.
  """
  edits = read_all(workdir)
  requests = known(requests, edits)
  path = pathlib.Path(workdir) / "export" / "params.npz"
  if not path.exists():
    raise FileNotFoundError(
      f"There is no {path}; run main.py on this workdir again with "
      "--my_config.export=True. Finished stages are not trained again."
    )
  ours = _check_written(path.parent)
  theirs = _check_written(path.parent.with_name("edits"))
  if ours != theirs:
    raise ValueError(
      f"The edits and the export in {workdir} are of two runs: their weights "
      "differ. Restore those of one run."
    )
  return apply(
    trees.unflatten(_arrays(path)), [edits[n] for n in requests], times=-1
  )


def known(requests: Iterable[int], edits: Mapping[int, Edit]) -> list[int]:
  """Returns the numbers, sorted; raises ValueError for unknown requests."""
  requests = sorted(set(requests))
  unknown = [number for number in requests if number not in edits]
  if unknown:
    raise ValueError(
      f"Unknown requests {unknown}; this run has {sorted(edits)}. Give some of "
      "these, separated by commas."
    )
  return requests
