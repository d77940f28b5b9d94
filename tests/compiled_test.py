"""A name of a compiled function has one function, compiled once."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from libml.devices.compiled import Compiled
from libml.train import steps


@dataclasses.dataclass(frozen=True)
class Scale:
  """Stands for a method: a frozen dataclass, made anew with equal fields."""

  by: float

  def times(self, x):
    return self.by * x


def scaled(x, by):
  return by * x


def made(by, inner=scaled):
  return lambda x: inner(x, by)


def moved(learning_rate):
  tx = optax.adam(learning_rate)

  def update(x):
    return tx.update(x, tx.init(x))[0]

  return update


@dataclasses.dataclass(frozen=True)
class Update:
  """Stands for an optimizer, whose transforms are functions made anew."""

  fn: Callable

  def update(self, x):
    return self.fn(x)


def defaulting(by):
  return lambda x, by=by: by * x


# Each is called with a number, and makes a function of an array anew.
MAKERS = {
  "a partial": lambda by: functools.partial(scaled, by=by),
  "a partial of values": lambda by: functools.partial(made, inner={"a": [by]}),
  "a method of a dataclass": lambda by: Scale(by).times,
  "a closure": made,
  "a closure of a method": lambda by: made(0, Scale(by).times),
  "a closure of an optimizer": moved,
  "a dataclass of functions": lambda by: Update(moved(by)).update,
  "a default": defaulting,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_made_anew_it_is_the_same_as_long_as_it_binds_the_same(make):
  compiled = Compiled()
  first = compiled("name", make(2.0))
  assert make(2.0) != make(2.0) or make is MAKERS["a method of a dataclass"]
  assert compiled("name", make(2.0)) is first
  with pytest.raises(RuntimeError, match="'name' has the compiled function"):
    compiled("name", make(3.0))


def test_other_code_is_another_function():
  compiled = Compiled()
  compiled("name", lambda x: x + 1)
  with pytest.raises(RuntimeError, match="another function"):
    compiled("name", lambda x: x + 2)
  with pytest.raises(RuntimeError, match="another function"):
    compiled("name", scaled)
  compiled("another name", scaled)
  compiled("class", functools.partial(made, inner=Scale))
  with pytest.raises(RuntimeError, match="another function"):
    compiled("class", functools.partial(made, inner=Update))


def test_arrays_that_it_binds_are_compared_as_objects():
  compiled, array = Compiled(), np.arange(3.0)
  first = compiled("name", functools.partial(scaled, by=array))
  assert compiled("name", functools.partial(scaled, by=array)) is first
  with pytest.raises(RuntimeError, match="as arguments"):
    compiled("name", functools.partial(scaled, by=array.copy()))


def test_a_function_may_bind_itself_or_nothing_yet():
  def counting(by):
    def count(x):
      return later(x) if by else count(x)

    if by > 1:
      later = scaled
    return count

  for by in (1.0, 2.0):
    compiled = Compiled()
    first = compiled("name", counting(by))
    assert compiled("name", counting(by)) is first
  with pytest.raises(RuntimeError, match="another function"):
    compiled("name", counting(1.0))


def test_it_is_compiled_once():
  compiled = Compiled()
  for _ in range(3):
    found = compiled("once", Scale(2.0).times)(jnp.ones(3))
    np.testing.assert_array_equal(found, [2, 2, 2])
  assert compiled.counts() == {"once": 1}


def test_steps_made_anew_of_the_same_parts_are_one():
  compiled = Compiled()
  parts = (Scale(1.0).times, Scale(2.0).times, Scale(3.0))
  first = compiled("train", steps.make_train_step(*parts))
  assert compiled("train", steps.make_train_step(*parts)) is first
  other = (Scale(4.0).times, *parts[1:])
  with pytest.raises(RuntimeError, match="'train'"):
    compiled("train", steps.make_train_step(*other))
  assert jax.tree.leaves(compiled.counts()) == []
