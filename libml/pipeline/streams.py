"""Batches of a subset: shuffled without end, or one pass in order.

A batch depends only on the seed and the step, not on the number of threads or
processes. So a run can stop and resume at any step.
"""

import os
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from libml.datasets import source
from libml.datasets import subset as subset_lib
from libml.images import mixing as mixing_lib
from libml.images import preprocess as preprocess_lib

Batch = dict[str, np.ndarray]
Example = dict[str, tf.Tensor]

# Seed of all sweeps with augmentation; train streams have other seeds.
_AUGMENTED_SWEEP = [0, 1]

# Turns AutoGraph off: no function here has an `if` or `for` on tensors, and
# AutoGraph's conversion takes longer than tracing.
_as_it_is = tf.autograph.experimental.do_not_convert

# More threads than this contend for locks; 16 keep a current GPU busy.
_MAX_THREADS = 16

# One copy of a split's images serves all streams that read them.
_TENSORS: weakref.WeakKeyDictionary[source.Split, tf.Tensor] = (
  weakref.WeakKeyDictionary()
)

# Datasets of sweeps, by their settings: to build one takes longer than to read
# a small test set, which is measured after every stage.
_SWEEPS: weakref.WeakKeyDictionary[subset_lib.Subset, dict[Any, Any]] = (
  weakref.WeakKeyDictionary()
)


def train_stream(
  subset: subset_lib.Subset,
  preprocess: preprocess_lib.Preprocess,
  *,
  batch_size: int,
  seed: tuple[int, ...],
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  threads: int | None = None,
  mixing: mixing_lib.Mixing | None = None,
  table: Mapping[str, np.ndarray] | None = None,
) -> Iterator[Batch]:
  """Returns an endless iterator of shuffled and augmented batches.

  Each epoch is a new permutation of the whole subset. A batch may contain
  images of two epochs, so no image is dropped, and a subset may be smaller than
  a batch.

  Args:
    subset: The images.
    preprocess: Its training chain is used.
    batch_size: Number of images of a batch, over all processes.
    seed: Integers folded together: run, stage, round, role.
    start_step: Number of batches to skip, without reading an image.
    process_index: Which part of every batch to return.
    process_count: Number of parts.
    threads: Threads that read and augment; None: one per core, 16 at most.
    mixing: Mixes each example with another one of the subset, which doubles
      the number of images read; None: off.
    table: Name -> array [len(subset), ...], whose rows join the examples.

  Returns:
    Batches {"image": float32 [B, H, W, 3], "label": int32 [B], or float32
    [B, C] probabilities with mixing, and rows of the table [B, ...]}, where B
    is batch_size // process_count.

  Raises:
    ValueError: There are no images, the processes cannot divide the batch, or
      a label is not below C (with mixing).
  """
  part = _part(subset, batch_size, process_index, process_count)
  first = start_step * batch_size
  order_seed, image_seed = tf.unstack(tf.random.split(_fold([0, 0], *seed), 2))
  num = len(subset)

  @_as_it_is
  def shuffle(epoch: tf.Tensor) -> tf.data.Dataset:
    order = tf.random.experimental.stateless_shuffle(
      tf.range(num, dtype=tf.int64), _fold(order_seed, epoch)
    )
    order = order[tf.where(epoch == first // num, first % num, 0) :]
    epochs = tf.fill(tf.shape(order), epoch)
    return tf.data.Dataset.from_tensor_slices((epochs, order))

  data = tf.data.Dataset.counter(start=first // num, dtype=tf.int64)
  data = data.flat_map(shuffle)
  if process_count > 1:
    # Divide indices, not images, so that only one process reads an image.
    share = _as_it_is(lambda *at: [x[part] for x in at])
    data = data.batch(batch_size).map(share)
    data = data.unbatch()
  load = _train_loader(subset, preprocess, image_seed, mixing)
  if table:
    load = _joined(load, table)
  data = _batched(data, load, batch_size // process_count, threads)
  return _named(data.as_numpy_iterator())


def sweep(
  subset: subset_lib.Subset,
  preprocess: preprocess_lib.Preprocess,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  threads: int | None = None,
  augment: bool = False,
) -> Iterator[Batch]:
  """Returns batches of one pass over the whole subset in its order.

  The last batch is filled up with copies of image 0, whose mask is False. So no
  image is lost, and all processes have the same number of batches.

  Args:
    subset: The images.
    preprocess: Its evaluation chain is used.
    batch_size: Number of images of a batch, over all processes.
    process_index: Which part of every batch to return.
    process_count: Number of parts.
    threads: As in train_stream.
    augment: Whether to use the training chain instead, seeded by the position
      in the subset, so that each pass gives the same images.

  Returns:
    Batches {"image": float32 [B, H, W, 3], "label": int32 [B], "mask": bool
    [B], "index": int32 [B], the position in the subset}, where B is
    batch_size // process_count.

  Raises:
    ValueError: The subset is empty, or the processes cannot divide the batch.
  """
  part = _part(subset, batch_size, process_index, process_count)
  known = _SWEEPS.setdefault(subset, {})
  how = preprocess, batch_size, process_index, process_count, threads, augment
  if how not in known:
    load = _sweep_loader(subset, preprocess, augment)
    index, mask = _whole_batches(len(subset), batch_size, part)
    data = tf.data.Dataset.from_tensor_slices((index, mask))
    size = batch_size // process_count
    known[how] = _batched(data, load, size, threads)
  return _named(known[how].as_numpy_iterator())


def _whole_batches(
  num: int, batch_size: int, part: slice
) -> tuple[np.ndarray, np.ndarray]:
  """Returns a process's positions in `num` images, and which are no filling."""
  index = np.arange(-(-num // batch_size) * batch_size).reshape(-1, batch_size)
  index = index[:, part].reshape(-1)
  mask = index < num
  return np.where(mask, index, 0), mask


def _sweep_loader(
  subset: subset_lib.Subset,
  preprocess: preprocess_lib.Preprocess,
  augment: bool,
) -> Callable[..., Example]:
  """Returns a function (index, mask) -> example of a sweep."""
  read = _reader(subset)

  def load(index: tf.Tensor, mask: tf.Tensor) -> Example:
    def chain(example: Example) -> Example:
      if augment:
        return preprocess.train_fn(example, _fold(_AUGMENTED_SWEEP, index))
      return preprocess.eval_fn(example)

    example = read(index, chain)
    return {**example, "mask": mask, "index": tf.cast(index, tf.int32)}

  return load


def _part(
  subset: subset_lib.Subset, batch_size: int, index: int, count: int
) -> slice:
  """Returns the slice of each batch for one process; checks the arguments."""
  if not len(subset):
    raise ValueError(
      "A set of images that a stage reads is empty; check that its classes "
      "have images in the data set."
    )
  if batch_size < 1 or batch_size % count:
    raise ValueError(
      f"Batch size {batch_size} must be a positive multiple of the number "
      f"of processes, {count}; change batch_size."
    )
  if not 0 <= index < count:
    raise ValueError(f"Process index {index} must lie in 0 to {count - 1}.")
  size = batch_size // count
  return slice(index * size, (index + 1) * size)


def _fold(seed: tf.Tensor | list[int], *data: tf.Tensor | int) -> tf.Tensor:
  seed = tf.cast(seed, tf.int64)
  for number in data:
    seed = tf.random.fold_in(seed, tf.cast(number, tf.int64))
  return seed


def _constant(array: Any) -> tf.Tensor:
  # Any, because TensorFlow's type stubs have an ndarray of their own.
  return tf.constant(array)


def _images(split: source.Split) -> tf.Tensor:
  if split not in _TENSORS:
    _TENSORS[split] = _constant(split.images)
  return _TENSORS[split]


def _reader(subset: subset_lib.Subset) -> Callable[..., Example]:
  """Returns a function (index, chain) -> preprocessed example."""
  splits = list(dict.fromkeys(piece.split for piece in subset.pieces))
  images = [_images(split) for split in splits]
  numbers = [splits.index(piece.split) for piece in subset.pieces]
  counts = [len(piece.rows) for piece in subset.pieces]
  which = _constant(np.repeat(numbers, counts).astype(np.int32))
  rows = _constant(np.concatenate([piece.rows for piece in subset.pieces]))
  labels = _constant(subset.labels)

  def read(index: tf.Tensor, chain: Callable[[Example], Example]) -> Example:
    def branch(number: int) -> Callable[[], Example]:
      def load() -> Example:
        image = images[number][rows[index]]
        if splits[number].encoding == "path":
          image = tf.io.read_file(image)
        return chain({"image": image, "label": labels[index]})

      return load

    branches = [branch(number) for number in range(len(splits))]
    if len(branches) == 1:
      return branches[0]()
    return tf.switch_case(which[index], branches)

  return read


def _train_loader(
  subset: subset_lib.Subset,
  preprocess: preprocess_lib.Preprocess,
  seed: tf.Tensor,
  mixing: mixing_lib.Mixing | None,
) -> Callable[..., Example]:
  """Returns a function (epoch, index) -> example of a train stream."""
  read = _reader(subset)

  def plain(rng: tf.Tensor, index: tf.Tensor) -> Example:
    return read(index, lambda example: preprocess.train_fn(example, rng))

  def load(epoch: tf.Tensor, index: tf.Tensor) -> Example:
    return plain(_fold(seed, epoch, index), index)

  if mixing is None or not mixing.is_on:
    return load
  highest = int(subset.labels.max())
  if highest >= mixing.num_classes:
    raise ValueError(
      f"Label {highest} has no place among the probabilities of "
      f"{mixing.num_classes} classes; give mixing the scenario's num_classes."
    )
  present = np.isin(np.arange(mixing.num_classes), subset.labels)
  present = _constant(present.astype(np.float32))

  def soft(rng: tf.Tensor, index: tf.Tensor) -> Example:
    return mixing.soften(plain(rng, index), present)

  def load_mixed(epoch: tf.Tensor, index: tf.Tensor) -> Example:
    example = soft(_fold(seed, epoch, index), index)
    if mixing.has_partners:
      # No epoch has the number -1, so mixing does not change how the example
      # itself is augmented.
      rng = _fold(seed, -1, epoch, index)
      step_seed, other_seed, mix_seed = tf.unstack(tf.random.split(rng, 3))
      num = len(subset)
      step = tf.random.stateless_uniform(
        [], step_seed, minval=1, maxval=max(num, 2), dtype=tf.int64
      )
      other = soft(other_seed, (index + step) % num)
      example = mixing.mix(example, other, mix_seed)
    return example

  return load_mixed


def _joined(
  load: Callable[..., Example], table: Mapping[str, np.ndarray]
) -> Callable[..., Example]:
  """Returns a loader that adds an example's rows of the table."""
  rows = {name: _constant(array) for name, array in table.items()}

  def load_joined(epoch: tf.Tensor, index: tf.Tensor) -> Example:
    found = {name: array[index] for name, array in rows.items()}
    return {**load(epoch, index), **found}

  return load_joined


def _batched(
  data: tf.data.Dataset,
  load: Callable[..., Example],
  batch_size: int,
  threads: int | None,
) -> tf.data.Dataset:
  threads = threads or min(os.cpu_count() or 1, _MAX_THREADS)
  load = _as_it_is(load)
  data = data.map(load, num_parallel_calls=threads, deterministic=True)
  data = data.batch(batch_size, drop_remainder=True).prefetch(2)
  options = tf.data.Options()
  options.deterministic = True
  # Autotuning would make speed and memory differ from run to run.
  options.autotune.enabled = False
  options.threading.private_threadpool_size = threads
  options.threading.max_intra_op_parallelism = 1
  return data.with_options(options)


def _named(batches: Iterator[Batch]) -> Iterator[Batch]:
  """Yields the batches; turns TensorFlow's errors on images to ValueErrors."""
  try:
    yield from batches
  except tf.errors.InvalidArgumentError as error:
    reason = error.message.partition("} ")[2] or error.message
    raise ValueError(
      f"An image cannot be used: {reason.splitlines()[0]} If sizes differ, set "
      "preprocess.eval='center_crop' and preprocess.train="
      "'random_resized_crop', or resize the files."
    ) from error
  except tf.errors.OpError as error:  # such as files deleted during the run
    reason = (error.message.partition("} ")[2] or error.message).splitlines()[0]
    raise OSError(
      f"An image cannot be read any more: {reason} Restore the file; the same "
      "command goes on from the last checkpoint."
    ) from error
