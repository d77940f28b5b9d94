"""Data sets by name. TensorFlow is imported only when a data set needs it."""

import functools
from collections.abc import Callable

from libml.datasets import collection
from libml.datasets import embedded
from libml.datasets import files
from libml.datasets import glyphs
from libml.datasets import swap
from libml.datasets import tfds_rows
from libml.datasets import tfds_source
from libml.datasets.collection import Collection
from libml.datasets.holdout import hold_out
from libml.datasets.source import Source
from libml.datasets.source import Split
from libml.datasets.subset import Piece
from libml.datasets.subset import Subset
from libml.datasets.swap import SETS
from libml.datasets.swap import Swap

__all__ = [
  "DATASETS",
  "SETS",
  "Collection",
  "Piece",
  "Source",
  "Split",
  "Subset",
  "Swap",
  "hold_out",
]

DATASETS: dict[str, Callable[..., Source | Collection | Swap]] = {
  "digits": embedded.digits,
  "glyphs": glyphs.glyphs,
  "synthetic": embedded.synthetic,
  "synthetic_sessions": embedded.synthetic_sessions,
  "npz": files.npz,
  "folder": files.folder,
  "tfds": tfds_source.tfds,
  **{
    name: functools.partial(tfds_source.tfds, **options)
    for name, options in tfds_rows.TFDS_DEFAULTS.items()
  },
  "core50": tfds_rows.core50,
  "domainnet": tfds_rows.domainnet,
  "domainnet_classes": tfds_rows.domainnet_classes,
}
DATASETS["swap_folders"] = swap.folders
DATASETS["swap_classes"] = functools.partial(swap.classes, DATASETS)
DATASETS["collection"] = functools.partial(collection.collection, DATASETS)
