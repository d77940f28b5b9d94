"""Measures images per second of the input pipeline, without a model.

  python benchmarks/input.py configs/cifar100_l2p.py configs/imr_dualprompt.py

Reads random images through the training and the evaluation chain of each
config: JPEG files of 500 x 375 pixels, as bytes in memory and as paths, and
small arrays. Prints one line of JSON; its numbers are medians over rounds in
which all cases take turns.
"""

import argparse
import ast
import functools
import importlib
import itertools
import json
import operator
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
import tensorflow as tf

from libml import registry
from libml.datasets import Piece
from libml.datasets import Split
from libml.datasets import Subset
from libml.images import mixing as mixing_lib
from libml.images import preprocess as preprocess_lib
from libml.pipeline import streams

JPEG_SHAPE = (375, 500, 3)
NUM_CLASSES = 10


def load(name: str, changes: list[str]) -> Any:
  """Returns a config with changes.

  Args:
    name: Config file, with :arguments.
    changes: Changes as "key=value", such as "preprocess.erase=0.25".
  """
  name, _, argument = name.partition(":")
  module = importlib.import_module(f"configs.{pathlib.Path(name).stem}")
  config = module.get_config(argument or None)
  config.lock()
  for key, value in (change.split("=", 1) for change in changes):
    *sections, last = key.split(".")
    section = functools.reduce(operator.getitem, sections, config)
    section[last] = ast.literal_eval(value)
  return config


def draw_jpegs(count: int) -> np.ndarray:
  """Returns the contents of JPEG files that are as large as photographs."""
  rng = np.random.default_rng(0)
  height, width, _ = JPEG_SHAPE
  files = []
  for _ in range(count):
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3)).astype("f4")
    image = tf.image.resize(coarse, [height, width], "bicubic").numpy()
    image += 6 * rng.standard_normal(JPEG_SHAPE, "f4")
    image = tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8)
    files.append(tf.io.encode_jpeg(image, quality=90).numpy())
  return np.array(files, object)


def make_splits(
  kinds: list[str], count: int, array_size: int, folder: pathlib.Path
) -> dict[str, Split]:
  """Returns the images of each kind: "bytes", "path", "array"."""
  rng = np.random.default_rng(0)
  shape = (count, array_size, array_size, 3)
  images = {"array": rng.integers(0, 256, shape, np.uint8)}
  if set(kinds) & {"bytes", "path"}:
    images["bytes"] = draw_jpegs(count)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path, content in zip(paths, images["bytes"], strict=True):
      path.write_bytes(content)
    images["path"] = np.array([str(path) for path in paths], object)
  labels = (np.arange(count) % NUM_CLASSES).astype(np.int32)
  return {kind: Split(images[kind], labels, kind) for kind in kinds}


def long_subset(split: Split) -> Subset:
  """Returns each image sixteen times, so that starting a pass costs little."""
  rows = np.tile(np.arange(len(split)), 16)
  return Subset((Piece(split, rows, split.labels[rows]),))


def batches(
  config: Any, subset: Subset, which: str, threads: int, number: int
) -> Iterator[Any]:
  """Returns endless batches of a config's chain, "train" or "eval"."""
  chain = preprocess_lib.Preprocess(
    **registry.plain(config.preprocess), size=config.model.image_size
  )
  options = {"batch_size": config.batch_size, "threads": threads}
  if which == "eval":
    return itertools.chain.from_iterable(
      streams.sweep(subset, chain, **options) for _ in itertools.count()
    )
  mixing = mixing_lib.Mixing(
    **registry.plain(config.mixing), num_classes=NUM_CLASSES
  )
  return streams.train_stream(
    subset, chain, seed=(number,), mixing=mixing, **options
  )


def time_batches(found: Iterator[Any], seconds: float) -> dict[str, float]:
  """Returns rates after the first batch, and the seconds until it came.

  Args:
    found: Batches.
    seconds: How long batches are counted.
  """
  began = time.perf_counter()
  next(found)
  first = time.perf_counter() - began
  count, wall, cpu = 0, time.perf_counter(), time.process_time()
  while (spent := time.perf_counter() - wall) < seconds or not count:
    count += len(next(found)["image"])
  spent = time.perf_counter() - wall
  return {
    "images_per_second": count / spent,
    "images_per_cpu_second": count / (time.process_time() - cpu),
    "first_batch_seconds": first,
  }


def measure(
  configs: dict[str, Any], splits: dict[str, Split], arguments: Any
) -> dict[str, Any]:
  """Returns {config: {kind: {"train" or "eval": rates}}}."""
  cases = list(itertools.product(configs, splits, ("train", "eval")))
  rounds: dict[Any, list[dict[str, float]]] = {case: [] for case in cases}
  subsets = {kind: long_subset(split) for kind, split in splits.items()}
  for number in range(arguments.rounds):
    for name, kind, which in cases:
      found = batches(
        configs[name], subsets[kind], which, arguments.threads, number
      )
      rates = time_batches(found, arguments.seconds)
      rounds[name, kind, which].append(rates)
  results: dict[str, Any] = {}
  for (name, kind, which), rates in rounds.items():
    results.setdefault(name, {}).setdefault(kind, {})[which] = {
      key: round(statistics.median(r[key] for r in rates), 3)
      for key in rates[0]
    }
  return results


def run(argv: list[str] | None = None) -> None:
  """Reads the command line and prints the results."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "configs", nargs="+", help="config files, with :arguments"
  )
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    help="a change of every config, such as preprocess.erase=0.25",
  )
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument(
    "--images", type=int, default=256, help="number of images of each kind"
  )
  parser.add_argument("--array_size", type=int, default=32)
  parser.add_argument("--kinds", default="bytes,path,array")
  parser.add_argument(
    "--seconds", type=float, default=1.5, help="seconds of each case"
  )
  parser.add_argument("--rounds", type=int, default=3)
  arguments = parser.parse_args(argv)
  configs = {name: load(name, arguments.set) for name in arguments.configs}
  for config in configs.values():
    config.batch_size = arguments.batch_size
  kinds = arguments.kinds.split(",")
  with tempfile.TemporaryDirectory() as folder:
    splits = make_splits(
      kinds, arguments.images, arguments.array_size, pathlib.Path(folder)
    )
    results = measure(configs, splits, arguments)
  facts = {
    "batch_size": arguments.batch_size,
    "threads": arguments.threads,
    "cores": os.cpu_count(),
    "image_size": {
      name: config.model.image_size for name, config in configs.items()
    },
    "tensorflow": tf.__version__,
    "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    // 1024,
    "results": results,
  }
  print(json.dumps(facts))


if __name__ == "__main__":
  run()
