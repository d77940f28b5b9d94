"""CORe50: 50 household objects, filmed in 11 sessions."""

import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from libml.datasets.builders import layout

SESSIONS = tuple(range(1, 12))
OBJECTS = tuple(f"o{number}" for number in range(1, 51))
_LAYOUT = (
  "the folders s1 to s11 of CORe50, each with the folders o1 to o50 of .png "
  "files, as core50_128x128.zip unpacks them"
)


class Core50(tfds.core.GeneratorBasedBuilder):
  """One split per session, "s1" to "s11"; image files are stored unchanged.

  Lomonaco and Maltoni, CORL 2017, https://vlomonaco.github.io/core50.
  """

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"A folder with {_LAYOUT}."

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=list(OBJECTS)),
        "file_name": tfds.features.Text(),
      }
    )
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Any]:
    folders = [f"s{s}/{o}" for s in SESSIONS for o in OBJECTS]
    root = pathlib.Path(dl_manager.manual_dir)
    found = layout.images(root, folders, _LAYOUT)
    return {
      f"s{session}": self._generate_examples(
        {name: found[f"s{session}/{name}"] for name in OBJECTS}
      )
      for session in SESSIONS
    }

  def _generate_examples(
    self, images: dict[str, list[pathlib.Path]]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, paths in images.items():
      for path in paths:
        if not layout.is_image(path):
          raise ValueError(
            f"Cannot decode {path}. Unpack the archive again, or remove the "
            "file."
          )
        file_name = f"{name}/{path.name}"
        yield (
          file_name,
          {"image": path, "label": name, "file_name": file_name},
        )
