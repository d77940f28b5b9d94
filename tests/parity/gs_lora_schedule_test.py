"""Rates, alpha and beta over epochs, of GS-LoRA and its baselines."""

import re
import types

import face_toy as toy
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from libml import problems
from libml.optim import schedules
from libml.train import train_state
from methods import METHODS
from models import MODELS

FIGURES = {"gslora/schedules": {}}
STORED = toy.stored("schedules")


def weights(kind):
  """Returns the names of the stored weights over epochs, "alpha" or "beta"."""
  prefix = f"out/{kind}/"
  return sorted(n.removeprefix(prefix) for n in STORED if n.startswith(prefix))


@pytest.mark.parametrize("dtype", toy.TYPES)
@pytest.mark.parametrize("name", sorted(toy.meta(STORED)["runs"]))
@pytest.mark.parametrize("steps", [1, 7])
def test_rate_is_timm_s_in_every_epoch(golden, name, steps, dtype):
  stored = golden("gslora", "schedules")
  run = dict(toy.meta(stored)["runs"][name])
  # A constant of ours.
  assert run.pop("warmup_lr") == 1e-6
  rate = schedules.build("timm_cosine", **run)
  wanted = stored[f"out/{name}"]
  # After a step the clock shows the part of the epoch that is done.
  for step in range(steps):
    clock = np.arange(len(wanted)) + (step + 1) / steps
    with toy.precision(dtype):
      found = rate(clock.astype(dtype))
    allowed = {"float64": 1e-12, "float32": 1e-6}[dtype]
    np.testing.assert_allclose(found, wanted, rtol=allowed)


def test_a_warm_up_counts_in_the_cosine():
  rate = schedules.build(
    "timm_cosine", lr=6e-4, epochs=1200, warmup_epochs=10, min_lr=2e-5
  )
  assert float(rate(1.0)) == pytest.approx(1e-6)
  cosine = 2e-5 + (6e-4 - 2e-5) * (1 + np.cos(np.pi * 10 / 1200)) / 2
  assert float(rate(11.0)) == pytest.approx(cosine, rel=1e-6)
  assert cosine < 6e-4


class Data:
  """As much of a stage's data as rounds ask for: epochs of one step."""

  def steps_per_epoch(self, roles):
    del roles
    return 1


def over_epochs(key, epochs, **options):
  """Returns the weight in the method's memory in each epoch of a request."""
  lora = {"layers": toy.PLACES["ffn"], "rank": 1}
  model = MODELS["face_vit"](
    variant="smoke", image_size=8, num_classes=2, lora=lora
  )
  method = METHODS["gs_lora"](
    model=model,
    problem=problems.PROBLEMS["classification"](),
    num_classes=2,
    num_stages=1,
    epochs=epochs,
    **options,
  )
  memory = {"alpha": jnp.float32(0), "beta": jnp.float32(method.beta[0])}
  state = train_state.TrainState(
    step=jnp.zeros((), jnp.int32),
    steps_per_epoch=jnp.ones((), jnp.int32),
    params={},
    opt_state=(),
    memory=memory,
    rng=jax.random.key(0),
  )
  data, seen = Data(), []
  state = method.end_epoch(state, data=data, done=0)
  for round_ in method.rounds(types.SimpleNamespace(index=0), data):
    seen += [float(state.memory[key])] * round_.steps
    state = round_.finish(state)
  return seen


def change(table, name):
  """Returns the epoch of the only change of a table; 0: there is none."""
  places = np.flatnonzero(np.diff(table)) + 1
  assert len(places) <= 1
  found = int(places[0]) if len(places) else 0
  told = re.search(r"epoch(\d+)$", name)
  assert not told or found == int(told[1])
  return found


@pytest.mark.parametrize("name", weights("alpha"))
def test_alpha_starts_at_its_epoch(golden, name):
  table = golden("gslora", "schedules")[f"out/alpha/{name}"]
  found = over_epochs(
    "alpha", len(table), alpha=table[-1], alpha_epoch=change(table, name)
  )
  np.testing.assert_allclose(found, table, rtol=1e-6)


@pytest.mark.parametrize("name", weights("beta"))
def test_beta_decays_at_its_epoch(golden, name):
  table = golden("gslora", "schedules")[f"out/beta/{name}"]
  found = over_epochs(
    "beta",
    len(table),
    beta=(table[0],),
    beta_decay_epoch=change(table, name),
  )
  np.testing.assert_allclose(found, table, rtol=1e-6)
