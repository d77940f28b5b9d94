"""Counts the bytes that devices exchange in a compiled function."""

import collections
import math
import re

# Bytes per element.
_WIDTH = {
  "pred": 1,
  "s8": 1,
  "u8": 1,
  "bf16": 2,
  "f16": 2,
  "s32": 4,
  "u32": 4,
  "f32": 4,
  "f64": 8,
}
# Count an asynchronous operation once, at its start.
_OPERATION = re.compile(
  r"= (\(.*?\)|\S+) (all-reduce|all-gather|reduce-scatter|all-to-all|"
  r"collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


def exchanged_bytes(hlo: str) -> dict[str, int]:
  """Returns {kind of collective operation: bytes of the results on one device}.

  Args:
    hlo: HLO text of a compiled function, from `compiled.as_text()`. It is the
      program of one device.

  Raises:
    ValueError: An array has an unknown type.
  """
  total: collections.Counter[str] = collections.Counter()
  for shape, kind in _OPERATION.findall(hlo):
    for dtype, dims in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", shape)):
      if dtype not in _WIDTH:
        raise ValueError(
          f"Unknown type {dtype} in {shape}; add its bytes to _WIDTH."
        )
      size = math.prod(int(d) for d in dims.split(",") if d)
      total[kind] += _WIDTH[dtype] * size
  return dict(total)
