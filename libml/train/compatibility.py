"""Checks that method, scenario, images and devices fit each other."""

from typing import Any

import jax

from libml import scenarios
from libml.devices import sharding


def check(
  method: Any,
  scenario: scenarios.Scenario,
  *,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  mixes: bool,
) -> None:
  """Raises ValueError if the parts of a run do not fit each other.

  Args:
    method: The method, with its model, problem and rehearsal.
    scenario: The stages.
    batch_size: Images of a batch, over all devices.
    mesh: Of the devices; batches are divided along its axis "data".
    mixes: Whether mixing turns labels into probabilities.
  """
  ways = mesh.shape["data"]
  if batch_size % ways:
    raise ValueError(
      f"batch_size={batch_size} cannot be split evenly over the {ways} devices "
      f"along the mesh's axis 'data'; take a multiple of {ways}, or set "
      "per_device_batch_size."
    )
  sharding.batch_part(mesh)  # raises if processes cannot divide the batch
  if method.problem.name not in method.problems:
    raise ValueError(
      f"{type(method).__name__} serves {' or '.join(method.problems)}, and the "
      f"problem is {method.problem.name}; take another method, or another "
      "problem.name."
    )
  for stage in scenario.stages:
    if stage.goal not in method.goals:
      raise ValueError(
        f"Stage {stage.index + 1} of the scenario is to {stage.goal}, and "
        f"{type(method).__name__} can only {' or '.join(method.goals)}; take "
        "another method or scenario.name."
      )
  if mixes and not (method.mixes and getattr(method.model, "mixes", True)):
    raise ValueError(
      f"{type(method).__name__} on {type(method.model).__name__} takes one "
      "class an image, and config.mixing makes labels probabilities; set "
      "mixup, cutmix and label_smoothing to 0."
    )
  if method.rehearsal.per_class and not method.rehearses:
    raise ValueError(
      f"{type(method).__name__} takes no exemplars; set rehearsal.per_class=0, "
      "or take a method that does, such as finetune or l2p."
    )
  method.check(scenario)
  _check_sizes(scenario, batch_size)


def _check_sizes(scenario: scenarios.Scenario, batch_size: int) -> None:
  """Raises ValueError if no stage, or one that retains, fills a batch."""
  sizes = [len(i) for stage in scenario.stages for i in stage.train.values()]
  if sizes and batch_size > max(sizes):
    raise ValueError(
      f"batch_size={batch_size} is larger than the {max(sizes)} images of the "
      f"largest stage; set it to {max(sizes)} or less."
    )
  for stage in scenario.stages:
    for role, images in stage.train.items():
      if "retain" in stage.train and len(images) < batch_size:
        raise ValueError(
          f"batch_size={batch_size} is larger than the {len(images)} images of "
          f"{role!r} in stage {stage.index + 1}; set it to {len(images)} or "
          "less, or keep more images (scenario.ratio, scenario.shots)."
        )
