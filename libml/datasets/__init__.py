"""Data sets by name. Nothing here imports TensorFlow before it is needed."""

import functools
from collections.abc import Callable

from libml.datasets import embedded
from libml.datasets import files
from libml.datasets import glyphs
from libml.datasets import tfds_source
from libml.datasets.source import Source
from libml.datasets.source import Split
from libml.datasets.source import hold_out
from libml.datasets.subset import Piece
from libml.datasets.subset import Subset

__all__ = ["DATASETS", "Piece", "Source", "Split", "Subset", "hold_out"]

DATASETS: dict[str, Callable[..., Source]] = {
  "digits": embedded.digits,
  "glyphs": glyphs.glyphs,
  "synthetic": embedded.synthetic,
  "npz": files.npz,
  "folder": files.folder,
  "tfds": tfds_source.tfds,
  **{
    name: functools.partial(tfds_source.tfds, **options)
    for name, options in tfds_source.TFDS_DEFAULTS.items()
  },
}
