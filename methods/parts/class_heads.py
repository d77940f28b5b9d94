"""Linear heads: their columns between tasks."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from libml import trees
from libml.scenarios import Scenario
from libml.scenarios import Stage


def check_new_classes(scenario: Scenario) -> None:
  """Raises ValueError if a class is learned in more than one stage."""
  seen: set[int] = set()
  for number, stage in enumerate(scenario.stages):
    again = sorted(seen.intersection(stage.classes["learn"]))
    if again:
      raise ValueError(
        f"Stage {number + 1} learns classes {again} again, but this method can "
        "learn a class only once. Set scenario.name='class_incremental' or "
        "'joined'."
      )
    seen.update(stage.classes["learn"])


def check_masked(stages: Sequence[Stage]) -> None:
  """Checks a scenario whose training masks the classes of other tasks.

  Raises:
    ValueError: Every task has one class: its masked cross entropy is always 0,
      so that nothing would be learned.
  """
  counts = {len(stage.classes["learn"]) for stage in stages}
  if counts == {1}:
    raise ValueError(
      "Each stage learns one class, and training masks all others, so that its "
      "loss is always 0. Take fewer tasks (scenario.num_tasks), or set "
      "method.mask_classes=False where the method has it."
    )


def check_transfer(part: str) -> None:
  """Raises ValueError unless part is "none", "kernel" or "all"."""
  if part not in ("none", "kernel", "all"):
    raise ValueError(
      f"method.transfer_head={part!r} must be 'none', 'kernel' or 'all'."
    )


def check_equal_tasks(stages: Sequence[Stage], part: str) -> None:
  """Checks that `transfer_head` fits a scenario.

  Args:
    stages: Of the scenario.
    part: "none", "kernel" or "all".

  Raises:
    ValueError: The head is transferred, and a stage has fewer or more classes
      than the first, or classes of an earlier stage.
  """
  if part == "none":
    return
  size = len(stages[0].classes["learn"])
  for number, stage in enumerate(stages):
    learn, seen = stage.classes["learn"], stage.classes["seen"]
    if len(learn) != size or len(seen) != size * (number + 1):
      raise ValueError(
        f"method.transfer_head={part!r} needs {size} new classes in every "
        f"stage, as many as the first stage has; stage {number + 1} has "
        f"{len(learn)} classes, and {len(seen)} instead of "
        f"{size * (number + 1)} have been seen. Set "
        "method.transfer_head='none'."
      )


def transfer(
  params: Any,
  classes: Mapping[str, tuple[int, ...]],
  part: str,
  heads: Sequence[str],
) -> Any:
  """Sets a task's columns to the mean of earlier tasks' (an option of L2P).

  Column i of the new task becomes the mean over earlier tasks of their column
  i; tasks have equally many classes.

  Args:
    params: All parameters; each head has a kernel [D, C] and a bias [C].
    classes: "learn": ids of the new classes; "seen": all ids so far, in order,
      the new ones last.
    part: "none": nothing is set; "kernel": the kernel; "all": the bias, too.
    heads: Branches of the heads.
  """
  new = np.asarray(classes["learn"])
  old = np.asarray(classes["seen"][: -len(new)])
  if part == "none" or not old.size:
    return params
  old = old.reshape(-1, len(new))
  flat, changed = trees.flatten(params), {}
  leaves = ("kernel",) if part == "kernel" else ("kernel", "bias")
  for name in [f"{head}/{leaf}" for head in heads for leaf in leaves]:
    means = flat[name][..., old].mean(axis=-2)
    changed[name] = flat[name].at[..., new].set(means)
  return trees.update(params, changed)
