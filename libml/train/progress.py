"""The counters and metrics of a run, which its checkpoints hold as JSON."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a run is, and what it has measured; checkpoints hold it as JSON.

  Attributes:
    stage: Stages finished.
    begun: Whether the stage's `before_stage` is done.
    trained: Whether the stage's `after_stage` is done.
    round: Rounds finished in this stage.
    step: Steps taken in this round.
    steps: Steps taken in the run.
    saves: Checkpoints made.
    rows: The test sets' metrics after each stage; first those of the model
      before the first stage, where the scenario measures it.
    observed: The method's counts, in the same order.
    reports: The method's report on each finished stage.
    audits: What the audits found after each finished stage; {}: not audited.
    compiled: Name of a compiled function -> number of compilations.
    data: Description of the images, and the CRC-32 of the scenario's.
    frozen: CRC-32 of the weights that checkpoints do not hold.
    seconds: "run": wall time of the run. "train": wall time of the timed steps.
      "timed_batches": number of batches in these. "stage": wall time of the
      training of the present stage, so far.
    stage_seconds: Wall time of the training of each finished stage.
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
  data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
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
