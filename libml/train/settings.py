"""Settings of a run that do not depend on its method."""

import dataclasses

import jax
from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of a run that do not depend on its method.

  Attributes:
    seed: Of data order, augmentation, dropout and new parameters.
    batch_size: Images of a batch, over all devices.
    log_every: Steps between two points of the training curves.
    checkpoint_every: Steps between two checkpoints inside a stage.
    checkpoint_keep: Number of checkpoints that are kept.

  Raises:
    ValueError: A number below its minimum.
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
      # The newest may hold weights that a step with a finite loss made NaN.
      "checkpoint_keep": 2,
    }
    for name, least in lowest.items():
      if getattr(self, name) < least:
        raise ValueError(
          f"{name}={getattr(self, name)} must be at least {least}."
        )
    if not 0 <= self.seed < 2**32:
      raise ValueError(f"seed={self.seed} must lie in 0 to 2**32 - 1.")


def of(config: ConfigDict) -> Settings:
  """Returns a config's Settings."""
  return Settings(
    seed=config.seed,
    batch_size=config.batch_size,
    log_every=config.log_every,
    checkpoint_every=config.checkpoint.every_steps,
    checkpoint_keep=config.checkpoint.keep,
  )


def with_global_batch(
  config: ConfigDict, mesh: jax.sharding.Mesh
) -> ConfigDict:
  """Returns a copy of a config with batch_size over all devices of the mesh."""
  config = config.copy_and_resolve_references()
  if config.per_device_batch_size is not None:
    config.batch_size = config.per_device_batch_size * mesh.shape["data"]
  return config
