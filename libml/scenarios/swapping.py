"""Learn new classes, forget some old ones, retain the rest, in any order.

Xing et al., "Knowledge Swapping via Learning and Unlearning", ICML 2025.
"""

import functools
import logging
import operator
from collections.abc import Mapping
from collections.abc import Sequence

from libml import datasets
from libml import problems
from libml.scenarios import metrics
from libml.scenarios import sampling
from libml.scenarios import stage as stage_lib

_LOG = logging.getLogger("palimpsest")

GOALS = {"l": "learn", "f": "forget"}
# The order of one stage that does both.
JOINT = "joint"


def swapping(
  source: datasets.Swap,
  *,
  order: str = "lf",
  ratio: float | None = 0.1,
  shots: int | None = None,
  learn_shots: int | None = None,
  sample_seed: int = 1337,
  spare: int = 0,
) -> stage_lib.Scenario:
  """Each letter of `order` is a stage: "l" learns, "f" forgets.

  Every "l" learns all new classes, and every "f" forgets all classes to forget.
  A stage retains a sample of the classes to retain; a stage that forgets after
  another one has learned retains the images to learn, too. The test images and
  the training images of the three sets are measured before the first stage and
  after each.

  Args:
    source: The three sets. The new classes' columns follow the known ones.
    order: Letters l and f, such as "lf" or "flf"; or "joint", one stage.
    ratio: Share of the training images to forget, and of those to retain, to
      draw, uniformly; None: all.
    shots: Training images to draw of each of their classes, instead of a share.
    learn_shots: Training images to draw of each new class; None: all.
    sample_seed: Of the draws.
    spare: Columns after the new ones that belong to no class. The released code
      has them: its head of 200 columns learns 5 or 10 classes.

  Raises:
    ValueError: An empty order or one with other letters; a number out of range;
      a class without a test image or a drawn training image; data that are no
      swap.
  """
  _check(source, spare)
  goals = _goals(order)
  spares = (f"spare {i}" for i in range(spare))
  names = (*source.known, *source.learn.class_names, *spares)
  columns, images, tests = _sets(source, names)
  samples = {
    name: sampling.Sample(
      images[name], ratio=ratio, shots=shots, seed=sample_seed
    )
    for name in datasets.SETS
  }
  # `ratio` and `shots` do not apply to the new classes.
  samples["learn"] = sampling.Sample(
    images["learn"],
    ratio=None,
    shots=learn_shots,
    seed=sample_seed,
    prefix="learn_",
  )
  images = {name: s.draw(0, columns[name]) for name, s in samples.items()}
  test_sets = _test_sets(tests, images, len(names))
  stages = _stages(source, goals, columns, images=images, test_sets=test_sets)
  return stage_lib.Scenario(
    stages=stages,
    num_classes=len(names),
    summarize=functools.partial(summarize_swapping, goals=goals),
    test_sets=datasets.SETS,
    class_names=names,
    new_classes=len(names) - len(source.known),
    before=test_sets,
    description={
      "order": order,
      **{name: list(map(int, ids)) for name, ids in columns.items()},
      "unseen": len(source.unseen),
      "sample": {name: s.describe() for name, s in samples.items()},
      "images": [{k: len(s) for k, s in t.train.items()} for t in stages],
    },
    seeds={"sample": sample_seed},
  )


def _check(source: datasets.Swap, spare: int) -> None:
  """Raises ValueError if the data are no swap, or `spare` is negative."""
  if not isinstance(source, datasets.Swap):
    raise ValueError(
      f"{source.name!r} does not say which classes to learn, to forget and to "
      "retain; set dataset.name to 'swap_folders' or 'swap_classes', or take "
      "another scenario.name."
    )
  if spare < 0:
    raise ValueError(f"scenario.spare={spare} must be 0 or more.")
  if source.unseen:
    _LOG.warning(
      "%d classes of the head are in none of the three sets; they are not "
      "measured, and may be forgotten: %s%s",
      len(source.unseen),
      ", ".join(source.unseen[:5]),
      ", ..." if len(source.unseen) > 5 else ".",
    )


def _sets(
  source: datasets.Swap, names: Sequence[str]
) -> tuple[
  dict[str, tuple[int, ...]],
  dict[str, datasets.Subset],
  dict[str, datasets.Subset],
]:
  """Returns each set's columns, all its training images and its test images.

  Args:
    source: The three sets.
    names: One a column of the head.
  """
  columns, images, tests = {}, {}, {}
  for name in datasets.SETS:
    part = source.learn if name == "learn" else source.old
    stage_lib.check_tested(part.splits["test"], part.class_names, part.name)
    labels = {i: names.index(c) for i, c in enumerate(part.class_names)}
    ids = range(part.num_classes) if name == "learn" else getattr(source, name)
    columns[name] = tuple(labels[i] for i in ids)
    images[name], tests[name] = (
      datasets.Subset.of(part.splits[key], ids, labels)
      for key in ("train", "test")
    )
  return columns, images, tests


def _test_sets(
  tests: Mapping[str, datasets.Subset],
  images: Mapping[str, datasets.Subset],
  num_classes: int,
) -> dict[str, stage_lib.TestSet]:
  """Returns each set's test images and its training images as test sets."""
  everything = tuple(range(num_classes))
  return {
    f"{prefix}{name}": stage_lib.TestSet(
      subset, everything, trained=bool(prefix)
    )
    for prefix, subsets in (("", tests), ("train_", images))
    for name, subset in subsets.items()
  }


def _roles(goals: Sequence[str]) -> dict[str, tuple[str, ...]]:
  """Returns role -> names of the sets that a stage trains on in that role.

  A stage that forgets retains what earlier stages learned. Once a stage has
  forgotten, later stages still have the images to forget.

  Args:
    goals: Of all stages so far; the last is that of the stage.
  """
  *earlier, goal = goals
  roles: dict[str, tuple[str, ...]] = {"retain": ("retain",)}
  if goal != "forget":
    roles["learn"] = ("learn",)
  elif any(e != "forget" for e in earlier):
    roles["retain"] += ("learn",)
  if any(g != "learn" for g in goals):
    roles["forget"] = ("forget",)
  return roles


def _stages(
  source: datasets.Swap,
  goals: Sequence[str],
  columns: Mapping[str, tuple[int, ...]],
  *,
  images: Mapping[str, datasets.Subset],
  test_sets: Mapping[str, stage_lib.TestSet],
) -> tuple[stage_lib.Stage, ...]:
  """Returns a stage for each goal.

  Args:
    source: Names the classes.
    goals: In order.
    columns: Of each set.
    images: Drawn training images of each set.
    test_sets: Of all stages.
  """
  stages = []
  known = test_sets["retain"].classes  # a prediction may name every column
  for i, goal in enumerate(goals):
    roles = _roles(goals[: i + 1])
    classes = {
      role: tuple(column for name in sets for column in columns[name])
      for role, sets in roles.items()
    }
    train = {
      role: functools.reduce(operator.add, (images[name] for name in sets))
      for role, sets in roles.items()
    }
    stages.append(
      stage_lib.Stage(
        index=i,
        goal=goal,
        train=train,
        test_sets=test_sets,
        classes={**classes, "new": columns["learn"], "known": known},
        name=f"stage {i}: {_shown(source, goal)}",
      )
    )
  return tuple(stages)


def summarize_swapping(
  rows: Sequence[stage_lib.Row],
  reading: str,
  metric: str,
  *,
  goals: Sequence[str],
) -> dict[str, float]:
  """Returns the summary after the last row, name -> value.

  The first row was measured before the first stage; "drop_forget" and
  "drop_retain" are drops since then. "h_mean" is the harmonic mean of the
  metric on "retain" and of drop_forget. "h_mean_previous", present after a
  stage that forgets, takes the drop since the row before. "swap_mean", which is
  our own, is the harmonic mean of the metric on "retain", of drop_forget and of
  the metric on "learn".

  Args:
    rows: As in Scenario.
    reading: As in Scenario.
    metric: As in Scenario.
    goals: Of the stages.
  """

  def value(row: stage_lib.Row, test_set: str) -> float:
    return row[test_set][reading][metric]

  first, last, short = rows[0], rows[-1], problems.short(metric)
  names = [f"{p}{name}" for p in ("", "train_") for name in datasets.SETS]
  summary = {f"{short}_{name}": value(last, name) for name in names}
  if len(rows) == 1:
    return summary
  retained = value(last, "retain")
  drops = {
    name: value(first, name) - value(last, name)
    for name in ("forget", "retain")
  }
  summary |= {f"drop_{name}": drop for name, drop in drops.items()}
  summary["h_mean"] = metrics.h_mean(retained, drops["forget"])
  if goals[len(rows) - 2] != "learn":
    since = value(rows[-2], "forget") - value(last, "forget")
    summary["h_mean_previous"] = metrics.h_mean(retained, since)
  summary["swap_mean"] = metrics.h_mean(
    retained, drops["forget"], value(last, "learn")
  )
  return summary


def _goals(order: str) -> tuple[str, ...]:
  if order == JOINT:
    return ("swap",)
  wrong = sorted(set(order) - set(GOALS))
  if wrong or not order:
    raise ValueError(
      f"scenario.order={order!r} must be {JOINT!r}, or letters l (learn) and f "
      "(forget), such as 'lf' or 'flf'"
      + (f"; {wrong[0]!r} is neither." if wrong else ", one at least.")
    )
  return tuple(GOALS[letter] for letter in order)


def _shown(source: datasets.Swap, goal: str) -> str:
  told = ("learn", "forget") if goal == "swap" else (goal,)
  return ", ".join(
    f"{name} {stage_lib.shown(source.names[name])}" for name in told
  )
