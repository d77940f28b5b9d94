"""A config's sections come from what takes their options."""

import dataclasses

import pytest

from configs import base
from configs import common
from libml.train.method import GIVEN
from libml.train.method import Method
from methods import METHODS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stranger(Method):
  """Is known to no file of configs/."""

  units: int = 32
  first: int | None = None
  late: int | None = None
  layers: tuple[int, ...] = (1, 3)

  smoke = {"units": 4, "first": 1, "late": 1}

  @classmethod
  def fewest_blocks(cls, options):
    return 1 + max(options["layers"])


@pytest.fixture
def config(monkeypatch):
  monkeypatch.setitem(METHODS, "stranger", Stranger)
  config = base.get_config()
  config.method = common.method("stranger", units=64, late=7)
  common.prompt_optimizer(config, lr=0.1, prompts=r"parts/.*")
  return config


def test_options_are_the_class_s_but_for_what_changes(config):
  assert config.method.to_dict() == {
    "name": "stranger",
    "restart_optimizer": True,
    "units": 64,
    "first": None,
    "late": 7,
    "layers": (1, 3),
  }
  # A flag can set it: the placeholder knows the type, and is its own.
  assert config.method.get_type("first") is int
  config.method.first = 2
  assert common.method("stranger")["first"].get() is None


@pytest.mark.parametrize("name", METHODS)
def test_section_holds_all_that_a_run_does_not_give(name):
  fields = {field.name for field in dataclasses.fields(METHODS[name])}
  assert common.method(name).keys() == {"name", *fields} - set(GIVEN)


def test_smoke_asks_the_method(config):
  small = common.smoke(config)
  assert small.method.to_dict() == {
    **config.method.to_dict(),
    "units": 4,
    "first": None,
    "late": 1,
  }
  assert small.model.depth == 4
  assert dict(small.optimizer.groups)["prompt"] == r"parts/.*"


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (
      lambda: common.method("l2p", topk=2),
      "'topk' of the method 'l2p'. Did you mean 'top_k'",
    ),
    (
      lambda: common.method("dualpromt"),
      "'dualpromt'. Did you mean 'dualprompt'",
    ),
    (
      lambda: common.scenario("swapping", ordr="lf"),
      "'ordr' of the scenario 'swapping'. Did you mean 'order'",
    ),
    (
      lambda: common.method("l2p", num_classes=3),
      "Unknown option 'num_classes'",
    ),
  ],
)
def test_unknown_name_is_answered_with_the_nearest(make, message):
  with pytest.raises(ValueError, match=message):
    make()
