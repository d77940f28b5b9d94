"""How far a run is."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a run is: all that a checkpoint holds beside arrays.

  Attributes:
    stage: Stages finished.
    begun: Whether the stage's `before_stage` is done.
    trained: Whether the stage's `after_stage` is done.
    round: Rounds finished in this stage.
    step: Steps taken in this round.
    steps: Steps taken in the run.
    saves: Checkpoints made.
    rows: Figures of each finished stage; those before the first one, where
      the scenario has some, lead.
    observed: Counts, in the same order.
    reports: What the method says of each finished stage.
    audits: What is still known after each finished stage; {}: not asked.
    compiled: Compilations of each function.
    data: Checksum of what the results say of the images.
    frozen: Checksum of the weights that no checkpoint holds.
    seconds: Wall time of the run, of its training, batches in the latter, and
      wall time of the stage's training so far.
    stage_seconds: The last of each finished stage.
  """

  stage: int = 0
  begun: bool = False
  trained: bool = False
  round: int = 0
  step: int = 0
  steps: int = 0
  saves: int = 0
  rows: tuple[Any, ...] = ()
  observed: tuple[Any, ...] = ()
  reports: tuple[Any, ...] = ()
  audits: tuple[Any, ...] = ()
  stage_seconds: tuple[float, ...] = ()
  compiled: Mapping[str, int] = dataclasses.field(default_factory=dict)
  data: int = 0
  frozen: int = 0
  seconds: Mapping[str, float] = dataclasses.field(
    default_factory=lambda: {
      "run": 0.0,
      "train": 0.0,
      "timed_batches": 0,
      "stage": 0.0,
    }
  )

  def to(self, **changes) -> "Progress":
    """Returns a changed copy."""
    return dataclasses.replace(self, **changes)
