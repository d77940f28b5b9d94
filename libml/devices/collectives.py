"""What devices send each other in a compiled step, read from its HLO."""

import collections
import math
import re

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
# An asynchronous operation counts once, where it starts.
_OPERATION = re.compile(
  r"= (\(.*?\)|\S+) (all-reduce|all-gather|reduce-scatter|all-to-all|"
  r"collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


def exchanged_bytes(hlo: str) -> dict[str, int]:
  """Returns {kind of collective operation: bytes of its results}.

  Args:
    hlo: Text of a compiled function, `compiled.as_text()`: the program of one
      device.

  Raises:
    ValueError: An array of a type that is not known.
  """
  total: collections.Counter[str] = collections.Counter()
  for shape, kind in _OPERATION.findall(hlo):
    for dtype, dims in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", shape)):
      if dtype not in _WIDTH:
        raise ValueError(f"Unknown type {dtype} in {shape}; add its width.")
      size = math.prod(int(d) for d in dims.split(",") if d)
      total[kind] += _WIDTH[dtype] * size
  return dict(total)
