"""How a run goes on, whatever its method."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a run goes on, whatever its method.

  Attributes:
    seed: Of data order, augmentation, dropout and fresh parameters.
    batch_size: Global.
    log_every: Steps between two points of the training curves.
    checkpoint_every: Steps between two checkpoints inside a stage.
    checkpoint_keep: How many to keep.
  """

  seed: int
  batch_size: int
  log_every: int = 10
  checkpoint_every: int = 500
  checkpoint_keep: int = 2

  def __post_init__(self):
    lowest = {
      "batch_size": 1,
      "log_every": 1,
      "checkpoint_every": 1,
      # The newest may hold weights that the last good loss just ruined.
      "checkpoint_keep": 2,
    }
    for name, least in lowest.items():
      if getattr(self, name) < least:
        raise ValueError(
          f"{name}={getattr(self, name)} must be at least {least}."
        )
