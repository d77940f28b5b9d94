"""Data sets that TensorFlow Datasets lacks: builders that read a download."""

import importlib
from typing import Any

# Name of the data set and of its module -> class.
BUILDERS = {
  "core50": "Core50",
  "not_mnist": "NotMnist",
}


def load(name: str) -> Any:
  """Returns a builder's class; TensorFlow Datasets knows it from then on."""
  module = importlib.import_module(f"libml.datasets.builders.{name}")
  return getattr(module, BUILDERS[name])


def remedy(name: str, data_dir: str) -> str:
  """Returns what to run to prepare a data set of TensorFlow Datasets."""
  if name in BUILDERS:
    return (
      "Where its unpacked download is, run: python -m libml.datasets.prepare "
      f"{name} --source DIR --data_dir={data_dir}"
    )
  return (
    f"Where there is a network, run: tfds build {name} --data_dir={data_dir}"
  )
