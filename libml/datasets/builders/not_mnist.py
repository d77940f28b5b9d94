"""notMNIST: the letters A to J in many fonts, of MNIST's size."""

import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from libml.datasets.builders import layout

LETTERS = tuple("ABCDEFGHIJ")
_LAYOUT = (
  "the folders A to J of .png files, as notMNIST_small.tar.gz unpacks them"
)


class NotMnist(tfds.core.GeneratorBasedBuilder):
  """The small set as one split, "train"; image files are stored unchanged.

  Bulatov, 2011. A few files of the download are broken; they are skipped.

  Attributes:
    skipped: Broken files, filled while the data set is prepared.
  """

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"A folder with {_LAYOUT}."

  def __init__(self, **options):
    super().__init__(**options)
    self.skipped: list[str] = []

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(shape=(28, 28, 1)),
        "label": tfds.features.ClassLabel(names=list(LETTERS)),
        "file_name": tfds.features.Text(),
      }
    )
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Any]:
    root = pathlib.Path(dl_manager.manual_dir)
    found = layout.images(root, LETTERS, _LAYOUT)
    return {"train": self._generate_examples(found)}

  def _generate_examples(
    self, images: dict[str, list[pathlib.Path]]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, paths in images.items():
      for path in paths:
        file_name = f"{name}/{path.name}"
        if not layout.is_image(path):
          self.skipped.append(file_name)
          continue
        yield (
          file_name,
          {"image": path, "label": name, "file_name": file_name},
        )
