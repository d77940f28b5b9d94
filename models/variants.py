"""Fields of a model from the keys of a config's model section."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from libml import registry
from models import lora as lora_lib


def fields(
  kind: str,
  variants: Mapping[str, Mapping[str, Any]],
  variant: str | None,
  *,
  lora: Mapping[str, Any] | None,
  **overrides: Any,
) -> dict[str, Any]:
  """Returns the fields of a variant, with overrides and adapters.

  Args:
    kind: Kind of the model, for the error.
    variants: Name -> fields.
    variant: Key of `variants`; None if the overrides give all sizes.
    lora: Fields of lora.Lora; None: no adapters.
    **overrides: Fields that replace the variant's.

  Raises:
    ValueError: If the variant or a field of lora is unknown.
  """
  if variant is not None and variant not in variants:
    raise ValueError(
      f"Unknown {kind} variant {variant!r}. "
      f"{registry.nearest(variant, variants)}"
    )
  sizes = variants[variant] if variant is not None else {}
  if lora is not None:
    known = {field.name for field in dataclasses.fields(lora_lib.Lora)}
    if not {"layers", "rank"} <= set(lora) <= known:
      raise ValueError(
        f"model.lora has the keys {sorted(lora)}; it takes {sorted(known)} and "
        "needs layers and rank."
      )
    overrides["dense"] = lora_lib.Lora(**lora)
  return {**sizes, **overrides}
