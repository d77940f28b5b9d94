"""Converts a torch checkpoint to .safetensors, without running its code.

  python -m models.convert IN.pth OUT.safetensors

A .pth file is a pickle, and unpickling runs the code inside. With
weights_only=True torch reads tensors only, safely from version 2.6 on. The
names stay as they are; pretrained.load knows those of timm, Hugging Face and
the Face Transformer.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

import numpy as np

from models import pretrained

_INSTALL = (
  "pip install 'torch>=2.6' --index-url https://download.pytorch.org/whl/cpu"
)
# Where training scripts keep the weights inside a checkpoint.
_NESTS = ("state_dict", "model", "model_state_dict")


def convert(source: pathlib.Path, target: pathlib.Path) -> int:
  """Writes the tensors of a torch checkpoint as .safetensors.

  Args:
    source: A file that torch.save wrote: tensors by name, or a dictionary with
      these under "state_dict", "model" or "model_state_dict".
    target: File to write; must end in .safetensors.

  Returns:
    The number of tensors.

  Raises:
    ImportError: If torch is not installed or older than 2.6.
    FileNotFoundError: If there is no such file.
    ValueError: If the file holds more than tensors, or the target has another
      suffix.
  """
  if target.suffix != ".safetensors":
    raise ValueError(f"Cannot write {target}: it must end in .safetensors.")
  if not source.is_file():
    raise FileNotFoundError(f"There is no file {source}.")
  weights = _read(source)
  for nest in _NESTS:
    if isinstance(weights.get(nest), dict):
      weights = weights[nest]
      break
  strange = sorted(
    str(k) for k, v in weights.items() if not hasattr(v, "detach")
  )
  if strange or not weights:
    raise ValueError(
      f"{source} must hold tensors by name, but holds {strange or 'nothing'}:"
      " save only the model's state_dict()."
    )
  pretrained.save(target, {k: _numpy(v) for k, v in weights.items()})
  return len(weights)


def _read(source: pathlib.Path) -> dict[str, Any]:
  """Reads a checkpoint with torch, tensors only."""
  try:
    import torch  # pyrefly: ignore[missing-import]
  except ImportError as error:
    raise ImportError(
      f"Reading {source} safely needs torch, which can be on another machine:"
      f" {_INSTALL}"
    ) from error
  version = tuple(int(n) for n in torch.__version__.split(".")[:2])
  if version < (2, 6):
    raise ImportError(
      f"torch {torch.__version__} may run code that a checkpoint holds even"
      f" with weights_only=True (CVE-2025-32434): {_INSTALL}"
    )
  try:
    weights = torch.load(source, map_location="cpu", weights_only=True)
  # torch passes on any error of unpickling, with the advice to trust the file.
  except Exception as error:
    raise ValueError(
      f"{source} holds more than tensors, or is damaged"
      f" ({type(error).__name__}); only tensors are loaded. If you trust the"
      " file, load it in torch and save only the model's state_dict()."
    ) from error
  if not isinstance(weights, dict):
    raise ValueError(
      f"{source} holds a {type(weights).__name__} instead of tensors by name:"
      " save the model's state_dict()."
    )
  return weights


def _numpy(tensor: Any) -> np.ndarray:
  """Returns a tensor as a NumPy array; bfloat16 becomes float32."""
  tensor = tensor.detach()
  if str(tensor.dtype) == "torch.bfloat16":
    tensor = tensor.float()
  return np.ascontiguousarray(tensor.numpy())


def main(argv: list[str] | None = None) -> None:
  """Reads the arguments and converts."""
  parser = argparse.ArgumentParser(prog="python -m models.convert")
  parser.add_argument("source", type=pathlib.Path, help="IN.pth")
  parser.add_argument("target", type=pathlib.Path, help="OUT.safetensors")
  args = parser.parse_args(argv)
  try:
    count = convert(args.source, args.target)
  except (ImportError, ValueError, OSError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
  print(f"{count} tensors written to {args.target}.")


if __name__ == "__main__":
  main()
