"""Task-free learning: classes come and go in overlapping Gaussian waves.

Shanahan et al., "Encoders and Ensembles for Task-Free Continual Learning",
2021; as L2P uses it, in two versions: the paper's stream of batches, and what
the released config runs.
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
  """Returns positions of stages and of peaks, and probabilities of classes.

  P[e, c] = exp(-(position_e - peak_c)^2 / (2 width^2)), position_e = e steps,
  and with p = num_stages steps // num_classes, peak_c = p // 2 + c p. Both
  divisions round down, also those of negative numbers.

  Args:
    num_stages: E.
    num_classes: C; each has one peak.
    steps: Distance from one stage to the next; -1 in the released code.
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

  A chain of keys, one split after the other, gives one number for each class of
  each stage. A stage without a class is drawn again with the next keys.

  Args:
    likely: P, float32 [E, C].
    key: First key of the chain.
    legacy_threefry: Whether to draw the numbers that JAX before 0.5 draws.

  Returns:
    bool [E, C]; each row has at least one class.
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
    steps_per_stage: Steps of one epoch of a stage; 5 is the paper's stream of
      1000 batches in 200 stages, with one epoch. None: what the released config
      runs. There an epoch has all images of the stage's classes, and stages are
      -1 steps apart, so each class occurs in half of the stages.
    width: Standard deviation of the Gaussian around a class's peak, in steps.
    measure_every: Stages from one measurement to the next.
    schedule_seed: Draws the classes.
    legacy_threefry: As in `draw_classes`.

  Raises:
    ValueError: A number below 1; a width that is not above 0, or that leaves a
      stage without a likely class; a class without a test image; a collection
      or a swap.
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
      f"scenario.width={width} leaves stages without a likely class; raise it, "
      "so that neighbouring peaks overlap."
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
    steps: Steps of one epoch; None: as many as the images fill.
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
