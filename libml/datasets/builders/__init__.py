"""TFDS builders, from an unpacked download, of data sets that TFDS lacks."""

import importlib
from typing import Any

# Name of the data set and of its module -> class.
BUILDERS = {
  "core50": "Core50",
  "not_mnist": "NotMnist",
}


def load(name: str) -> Any:
  """Returns a builder's class; importing it registers it with TFDS."""
  module = importlib.import_module(f"libml.datasets.builders.{name}")
  return getattr(module, BUILDERS[name])


def remedy(name: str, data_dir: str) -> str:
  """Returns a sentence that says which command prepares a data set of TFDS."""
  if name in BUILDERS:
    return (
      "On a machine with its unpacked download, run: "
      f"python -m libml.datasets.prepare {name} --source DIR "
      f"--data_dir={data_dir}"
    )
  return (
    "On a machine with network access, run: "
    f"tfds build {name} --data_dir={data_dir}"
  )
