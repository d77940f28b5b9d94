"""Task-free learning: classes come and go in overlapping Gaussian waves.

Shanahan et al., "Encoders and Ensembles for Task-Free Continual Learning",
2021; for L2P in both readings of its released code.
"""

import functools

import jax
import numpy as np

from libml import datasets
from libml.scenarios import domains
from libml.scenarios import stage as stage_lib


def probability(
  num_stages: int, num_classes: int, *, steps: int, width: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns where stages and peaks lie, and how likely classes are.

  P[e, c] = exp(-(position_e - peak_c)^2 / (2 width^2)), position_e = e steps,
  and with p = num_stages steps // num_classes, peak_c = p // 2 + c p. The
  divisions round down, of negative numbers, too.

  Args:
    num_stages: E.
    num_classes: C; each has one peak.
    steps: Distance of two stages; -1 in the code that was released.
    width: Standard deviation, in steps.

  Returns:
    Positions int [E], peaks int [C], P float32 [E, C].
  """
  positions = steps * np.arange(num_stages)
  distance = num_stages * steps // num_classes
  peaks = distance // 2 + distance * np.arange(num_classes)
  gap = positions[:, None] - peaks[None, :]
  return positions, peaks, np.exp(-(gap**2) / (2 * width**2)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=1)
def _uniform_chain(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """Returns the last carried key, and one uniform number of each used key."""

  def draw(carry, _):
    use, carry = jax.random.split(carry)
    return carry, jax.random.uniform(use)

  return jax.lax.scan(draw, key, length=count)


def draw_classes(
  likely: np.ndarray, key: jax.Array, *, legacy_threefry: bool = False
) -> np.ndarray:
  """Draws which classes each stage has, as the L2P code does.

  One key is split class by class and stage by stage; a stage that ends empty
  is drawn again with the key that was carried on.

  Args:
    likely: P, float32 [E, C].
    key: With which the chain starts.
    legacy_threefry: Whether keys and numbers are those of JAX before 0.5.

  Returns:
    bool [E, C], no row empty.
  """
  num_stages, num_classes = likely.shape
  drawn, numbers = [], []
  with jax.threefry_partitionable(not legacy_threefry):
    while len(drawn) < num_stages:
      if not numbers:
        key, chain = _uniform_chain(key, num_stages * num_classes)
        numbers = list(np.asarray(chain).reshape(num_stages, num_classes))
      present = numbers.pop(0) < likely[len(drawn)]
      if present.any():
        drawn.append(present)
  return np.array(drawn)


def schedule_key(seed: int, *, legacy_threefry: bool = False) -> jax.Array:
  """Returns the key with which the L2P code draws a schedule."""
  with jax.threefry_partitionable(not legacy_threefry):
    return jax.random.split(jax.random.PRNGKey(seed))[1]


def gaussian(
  source: datasets.Source,
  *,
  num_stages: int = 200,
  steps_per_stage: int | None = 5,
  width: float = 50.0,
  measure_every: int = 10,
  schedule_seed: int = 42,
  legacy_threefry: bool = False,
) -> stage_lib.Scenario:
  """Each stage brings some classes, drawn with a Gaussian around their peaks.

  Every measure_every-th stage and the last are measured, on all test images.

  Args:
    source: The images.
    num_stages: Number of stages.
    steps_per_stage: Steps of an epoch in each stage (the paper's stream: 1000
      batches in 200 stages of 5, one epoch). None: the schedule that the
      released code runs: all images of the stage's classes make an epoch, and
      a length of -1 a stage lets each class occur in half of the stages.
    width: Standard deviation of a class's wave, in steps.
    measure_every: Stages from one measurement to the next.
    schedule_seed: Draws the classes.
    legacy_threefry: As in `draw_classes`.

  Raises:
    ValueError: Numbers below 1, a schedule too short for its classes, a class
      without a test image, or a collection.
  """
  source = stage_lib.single(source)
  _check_numbers(
    num_stages=num_stages,
    steps_per_stage=1 if steps_per_stage is None else steps_per_stage,
    measure_every=measure_every,
  )
  if width <= 0:
    raise ValueError(f"scenario.width={width} must be above 0.")
  stage_lib.check_source(source)
  *_, likely = probability(
    num_stages, source.num_classes, steps=steps_per_stage or -1, width=width
  )
  if likely.max(axis=1).min() < 1e-3:
    raise ValueError(
      f"scenario.width={width} leaves stages without a likely class; take "
      "more, so that neighbouring peaks overlap."
    )
  drawn = draw_classes(
    likely,
    schedule_key(schedule_seed, legacy_threefry=legacy_threefry),
    legacy_threefry=legacy_threefry,
  )
  arrivals = _arrivals(
    source, drawn, measure_every=measure_every, steps=steps_per_stage
  )
  return stage_lib.Scenario(
    stages=stage_lib.learn_in_order(arrivals),
    num_classes=source.num_classes,
    summarize=domains.summarize_test,
    test_sets=("test",),
    description={
      "reading": "shipped" if steps_per_stage is None else "stream",
      "classes_per_stage": drawn.sum(axis=1).tolist(),
      "evaluation": "on all test images",
    },
    seeds={"schedule": schedule_seed},
  )


def _check_numbers(**numbers: int) -> None:
  for name, value in numbers.items():
    if value < 1:
      raise ValueError(f"scenario.{name}={value} must be at least 1.")


def _arrivals(
  source: datasets.Source,
  drawn: np.ndarray,
  *,
  measure_every: int,
  steps: int | None,
) -> list[stage_lib.Arrival]:
  """Returns what each stage brings.

  Args:
    source: The images.
    drawn: Classes of each stage, bool [E, C].
    measure_every: Stages from one measurement to the next.
    steps: Steps of an epoch; None: as many as the images give.
  """
  everything = tuple(range(source.num_classes))
  test = datasets.Subset.of(source.splits["test"])
  test_sets = {"test": stage_lib.TestSet(test, everything)}

  @functools.cache
  def images(classes):
    return datasets.Subset.of(source.splits["train"], classes)

  arrivals = []
  for e, seen in enumerate(np.logical_or.accumulate(drawn)):
    measured = (e + 1) % measure_every == 0 or e + 1 == len(drawn)
    classes = tuple(np.flatnonzero(drawn[e]).tolist())
    arrivals.append(
      stage_lib.Arrival(
        name=f"stage {e + 1}",
        learn=images(classes),
        seen=images(tuple(np.flatnonzero(seen).tolist())),
        classes=classes,
        test_sets=test_sets if measured else {},
        steps=steps,
      )
    )
  return arrivals
