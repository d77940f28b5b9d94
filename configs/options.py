"""Sections of a config, made from the class or function that takes them."""

import types
import typing
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from ml_collections import config_dict

from libml import registry
from libml.scenarios import SCENARIOS
from libml.train.method import GIVEN
from methods import METHODS


def method(name: str, **changes: Any) -> dict[str, Any]:
  """Returns the section of a method: a key of METHODS and all its options.

  Options that are not in `changes` have the defaults of the method's class. An
  option that is None becomes a placeholder of its type, so that a flag can set
  it.

  Raises:
    ValueError: An unknown method or option; the message names similar ones.
  """
  return _section("method", METHODS, name, changes=changes, given=GIVEN)


def scenario(name: str, **changes: Any) -> dict[str, Any]:
  """Returns the section of a scenario: a key of SCENARIOS and its options."""
  return _section("scenario", SCENARIOS, name, changes=changes)


def _section(
  kind: str,
  table: Mapping[str, Callable[..., Any]],
  name: str,
  *,
  changes: Mapping[str, Any],
  given: Sequence[str] = (),
) -> dict[str, Any]:
  parameters = {
    option: parameter
    for option, parameter in registry.parameters(table, kind, name).items()
    if parameter.kind is parameter.KEYWORD_ONLY and option not in given
  }
  registry.check(f"{kind} {name!r}", changes, parameters)
  section: dict[str, Any] = {"name": name}
  for option, parameter in parameters.items():
    value = changes.get(option, parameter.default)
    if value is None:
      value = config_dict.placeholder(_type(parameter.annotation))
    section[option] = value
  return section


def _type(annotation: Any) -> type:
  """Returns the type that a flag parses; for `float | None` it is float."""
  if isinstance(annotation, types.UnionType):
    kinds = typing.get_args(annotation)
    annotation = next(kind for kind in kinds if kind is not types.NoneType)
  kind = typing.get_origin(annotation) or annotation
  return tuple if kind is Sequence else kind
