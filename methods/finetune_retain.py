"""Fine-tuning on the images to retain, from the given weights."""

import dataclasses

from methods.parts import retaining


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneRetain(retaining.Retaining):
  """Trains on the images to retain; nothing acts against the other classes.

  A baseline in Warnecke et al., "Machine Unlearning of Features and Labels",
  NDSS 2023.
  """
