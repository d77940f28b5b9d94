"""Edits of past requests: audited, undone, reordered.

Request t leaves its adapters in WORKDIR/edits/stage_T.npz, and the model that
is in service has the kernels

  W = W_0 + sum_t s_t A_t B_t

of which every term can be taken away again, whatever came after it; neither
their order nor that of undoing matters. What a method trained beside its
adapters, such as a head, stays.

`python -m models.edits WORKDIR` shows them and takes them away.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
import zipfile
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from libml import trees
from models import lora

_ZERO = "zero/"

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Edit:
  """What one request did to the model.

  Attributes:
    adapters: `lora_a` [D_in, R] and `lora_b` [R, D_out] beside each other under
      the names of their layers, as lora.split gives them.
    scale: Factor of A B.
    zero: Group of the group lasso -> whether all its entries are exactly 0;
      empty where the method has none.
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
    with np.load(path, allow_pickle=False) as file:
      return dict(file)
  except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(
      f"{path} is no .npz file of plain arrays ({error}): write it again with "
      "the run that made it."
    ) from error


def read(path: str | os.PathLike[str]) -> Edit:
  """Reads the edit of one request.

  Args:
    path: WORKDIR/edits/stage_T.npz: adapters under their parameters' names,
      "scale", "classes" and "zero/GROUP".

  Raises:
    FileNotFoundError: No such file.
    ValueError: A file of something else, adapters that do not go together, or
      a group that is said to be zero and is not.
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
  if lines or not adapters:
    raise ValueError(
      f"{path} is no edit: {'; '.join(lines) or 'it holds no adapters'}. Take "
      "a stage_T.npz as a run wrote it to WORKDIR/edits."
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
        f"{path} says that group {group!r} is zero, but it changes weights (by "
        f"{numbers['change']:.3g}): the file was altered; take the run's own."
      )
  return edit


def _fit(a: tuple[int, ...] | None, b: tuple[int, ...] | None) -> bool:
  return bool(a and b and len(a) == len(b) == 2 and a[1] == b[0])


def read_all(workdir: str | os.PathLike[str]) -> dict[int, Edit]:
  """Reads the edits of a run, by the number of their request, from 0.

  Raises:
    FileNotFoundError: The run kept none.
    ValueError: As `read`.
  """
  folder = pathlib.Path(workdir) / "edits"
  numbers = {}
  for path in folder.glob("stage_*.npz"):
    if match := re.fullmatch(r"stage_(\d+)", path.stem):
      numbers[int(match[1])] = path
  if not numbers:
    raise FileNotFoundError(
      f"No edits in {folder}; give the --workdir of a run that forgets with "
      "adapters, such as one of configs/digits_gs_lora.py."
    )
  return {number: read(numbers[number]) for number in sorted(numbers)}


def summary(edit: Edit) -> dict[str, Any]:
  """Returns what an edit did, in plain numbers.

  A group's adapters are those whose names have the parts of its name, in their
  order: a block's name stands for all of that block.

  Returns:
    "classes"; "weights_changed", the entries of the kernels whose A B is not
    all zero; "adapter_entries", the entries of A and B that are not zero;
    "norm", the l2 norm of all scale A B; "groups", group -> "zero", "norm" of
    its entries and "change" of scale A B in the layers that it has a part in,
    both None where no adapter has the group's name.
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

  The sum is float64 and rounded once, so the edits' order shows in nothing but
  the last bit, if at all. A kernel that they leave alone is the very same
  array, bit for bit.

  Args:
    params: All parameters, on the host; adapters in it stay as they are.
    edits: Any of a run's.
    times: -1 undoes them.

  Raises:
    ValueError: Edits of another model.
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
      + "\nTake the weights and the edits of one run."
    )
  for name, change in sums.items():
    kernel = flat[name]
    edited = _float64(kernel) + times * change.reshape(kernel.shape)
    flat[name] = edited.astype(kernel.dtype)
  return trees.unflatten(flat)


def undo(
  workdir: str | os.PathLike[str], requests: Iterable[int]
) -> dict[str, Any]:
  """Returns a run's exported parameters without what some requests did.

  Args:
    workdir: Of the run; its export and its edits are read.
    requests: Their numbers, from 0.

  Raises:
    FileNotFoundError: No edits, or no export.
    ValueError: An unknown request, or files that do not go together.
  """
  edits = read_all(workdir)
  requests = known(requests, edits)
  path = pathlib.Path(workdir) / "export" / "params.npz"
  if not path.exists():
    raise FileNotFoundError(
      f"No {path}; run main.py on this workdir again with "
      "--my_config.export=True, which trains nothing that is done."
    )
  return apply(
    trees.unflatten(_arrays(path)), [edits[n] for n in requests], times=-1
  )


def known(requests: Iterable[int], edits: Mapping[int, Edit]) -> list[int]:
  """Returns the numbers, sorted; ValueError names those that are not there."""
  requests = sorted(set(requests))
  unknown = [number for number in requests if number not in edits]
  if unknown:
    raise ValueError(
      f"Unknown requests {unknown}; this run has {sorted(edits)}. Give some of "
      "these, with commas."
    )
  return requests
