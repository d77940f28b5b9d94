"""Turns an unpacked download into a data set of TensorFlow Datasets.

python -m libml.datasets.prepare core50 --source DIR [--data_dir DIR]
"""

import argparse
import logging
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from libml.datasets import builders


def prepare(
  name: str, *, source: str, data_dir: str | None = None
) -> tuple[pathlib.Path, dict[str, int], list[str]]:
  """Prepares a data set of TensorFlow Datasets from an unpacked download.

  Args:
    name: Key of BUILDERS.
    source: Folder of the unpacked download; it is only read.
    data_dir: Folder of prepared data sets; None: the default of TFDS.

  Returns:
    The new folder, the number of images of each split, and the broken files
    that were skipped.

  Raises:
    FileNotFoundError: The folder does not exist or is empty.
    FileExistsError: The data set is prepared already.
    ValueError: The download has another layout, or a file cannot be decoded.
  """
  import tensorflow_datasets as tfds

  root = pathlib.Path(source)
  if not root.is_dir() or not any(root.iterdir()):
    raise FileNotFoundError(
      f"The folder {source} does not exist or is empty; give the folder of the "
      "unpacked download."
    )
  builder = builders.load(name)(data_dir=data_dir)
  folder = pathlib.Path(builder.data_dir)
  if builder.is_prepared():
    raise FileExistsError(
      f"{folder} exists already. To make it again, remove it first."
    )
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(
      manual_dir=source, try_download_gcs=False
    )
  )
  counts = {
    key: split.num_examples for key, split in builder.info.splits.items()
  }
  return folder, counts, getattr(builder, "skipped", [])


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the arguments, prepares the data set and prints its splits."""
  parser = argparse.ArgumentParser(
    prog="python -m libml.datasets.prepare", description=__doc__
  )
  parser.add_argument("name", choices=sorted(builders.BUILDERS))
  parser.add_argument("--source", required=True, help="unpacked download")
  parser.add_argument("--data_dir", help="folder of prepared data sets")
  options: Any = parser.parse_args(argv)
  # TensorFlow and TFDS log every folder that does not exist yet.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  logging.getLogger("absl").setLevel(logging.ERROR)
  try:
    folder, counts, skipped = prepare(
      options.name, source=options.source, data_dir=options.data_dir
    )
  except (ValueError, OSError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
  print(f"{options.name}, in {folder}:")
  for split, count in counts.items():
    print(f"  {split}: {count} images")
  if skipped:
    print(f"  {len(skipped)} broken files skipped: {', '.join(skipped)}")


if __name__ == "__main__":
  main()
