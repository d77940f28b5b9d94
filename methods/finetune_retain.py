"""Fine-tuning on what stays, from the given weights."""

import dataclasses

from methods.parts import retaining


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneRetain(retaining.Retaining):
  """Goes on with the images to retain, and hopes that the rest is forgotten.

  Warnecke et al., "Machine Unlearning of Features and Labels", NDSS 2023, has
  it as a baseline.
  """
