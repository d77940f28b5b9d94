"""Sources that need no download: scikit-learn's digits, and random images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from libml.datasets import collection
from libml.datasets import source


def digits(
  *,
  test_fraction: float = 0.25,
  seed: int = 0,
  classes: Sequence[int] | None = None,
) -> source.Source:
  """Returns scikit-learn's 1,797 handwritten digits, 8x8, in 10 classes.

  The grey levels 0 to 16 become 0 to 255 in three equal channels.

  Args:
    test_fraction: Fraction of each class's images that go to the test split.
    seed: Decides which images go to the test split.
    classes: Digits to keep; they become 0, 1, ... in this order. None: all.
  """
  from sklearn import datasets

  bunch: Any = datasets.load_digits()
  levels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
  images = np.repeat(levels, 3, axis=-1)  # [N, 8, 8, 3]
  whole = source.Split(images, bunch.target.astype(np.int32))
  train, test = source.stratify(
    whole.labels, test_fraction, source.generator(seed)
  )
  found = source.Source(
    name="digits",
    class_names=tuple(map(str, range(10))),
    splits={"train": whole.rows(train), "test": whole.rows(test)},
    origin="scikit-learn digits (UCI optical recognition, Alpaydin and "
    f"Kaynak, 1998); test fraction {test_fraction}, seed {seed}",
  )
  return found if classes is None else found.select(classes)


def synthetic(
  *,
  num_classes: int = 10,
  per_class: int = 20,
  test_per_class: int = 10,
  size: int = 8,
  noise: float = 24.0,
  seed: int = 0,
) -> source.Source:
  """Returns random images that a small network can learn, for tests.

  Each class has a 4x4 grid of random colours, scaled to the image's size. An
  image is the grid of its class plus Gaussian noise.

  Args:
    num_classes: Number of classes.
    per_class: Training images per class.
    test_per_class: Test images per class.
    size: Height and width in pixels.
    noise: Standard deviation of the noise in grey levels (of 255).
    seed: Decides colours and noise.
  """
  # Separate generators: the colours do not depend on the number of images.
  colours = source.generator(seed, 0).uniform(32, 224, (num_classes, 4, 4, 3))
  cell = np.arange(size) * 4 // size
  templates = colours[:, cell][:, :, cell]  # [num_classes, size, size, 3]

  def draw(count: int, stream: int) -> source.Split:
    labels = np.tile(np.arange(num_classes, dtype=np.int32), count)
    rng = source.generator(seed, stream)
    images = templates[labels]
    images = images + rng.normal(0, noise, images.shape)
    return source.Split(np.clip(images, 0, 255).astype(np.uint8), labels)

  return source.Source(
    name="synthetic",
    class_names=tuple(map(str, range(num_classes))),
    splits={"train": draw(per_class, 1), "test": draw(test_per_class, 2)},
    origin=f"random colour grids; noise {noise}, seed {seed}",
  )


def synthetic_sessions(
  *, sessions: int = 3, per_class: int = 20, **options: Any
) -> collection.Collection:
  """Returns `synthetic` in sessions that share the classes and the test split.

  Args:
    sessions: Number of sessions.
    per_class: Training images per class and session.
    **options: Other arguments of `synthetic`.
  """
  whole = synthetic(per_class=sessions * per_class, **options)
  train, test = whole.splits["train"], whole.splits["test"]
  rows = np.split(np.arange(len(train)), sessions)
  return collection.Collection(
    "synthetic_sessions",
    tuple(
      source.Source(
        name=f"session_{i}",
        class_names=whole.class_names,
        splits={"train": train.rows(part), "test": test},
        origin=f"{whole.origin}; session {i} of {sessions}",
      )
      for i, part in enumerate(rows)
    ),
  )
