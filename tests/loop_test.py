"""The loop serves a method that it has never seen: two streams, two losses.

Away pushes the loss on images to forget up, Near pulls that on images to keep
down; a stage is Near, Away, Near.
"""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from libml import datasets
from libml import optim
from libml import scenarios
from libml.devices import sharding
from libml.images import preprocess
from libml.problems.classification import Classification
from libml.results import writer as writer_lib
from libml.train import run as run_lib
from libml.train import settings
from libml.train.method import Method
from libml.train.method import Round
from libml.train.observer import Observer
from libml.train.walk import Interrupted


class Linear(nn.Module):
  """A linear classifier of pixels."""

  num_classes: int

  @nn.compact
  def __call__(self, inputs, *, train=False):
    x = inputs["image"].reshape(len(inputs["image"]), -1)
    return {"logits": nn.Dense(self.num_classes, name="head")(x)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AwayAndNear(Method):
  """Memory holds the mean parameters after each Away, and how many there were.

  Attributes:
    bound: Cross entropy up to which forgetting is rewarded.
  """

  bound: float = 3.0

  goals = ("forget",)

  def init_memory(self, params, trainable):
    return {
      "mean": jax.tree.map(jnp.zeros_like, params),
      "count": jnp.zeros(()),
    }

  def rounds(self, stage, data):
    near = Round("near", self.near, {"kept": ("retain",)}, 3)
    streams = {"gone": ("forget",), "kept": ("retain",)}
    away = Round("away", self.away, streams, 6, self.remember)
    return (near, away, near)

  def near(self, params, memory, batch, rng):
    return self.problem.loss(self.apply(params, batch["kept"]), batch["kept"])

  def away(self, params, memory, batch, rng):
    gone, _ = self.problem.loss(
      self.apply(params, batch["gone"]), batch["gone"]
    )
    kept, _ = self.near(params, memory, batch, rng)
    return kept + jax.nn.relu(self.bound - gone), {"gone": gone, "kept": kept}

  def remember(self, state):
    count = state.memory["count"] + 1
    mean = jax.tree.map(
      lambda m, p: m + (p - m) / count, state.memory["mean"], state.params
    )
    return state.replace(memory={"mean": mean, "count": count})


def forgetting(source, order):
  """Returns the scenario in which one class of `order` after another goes."""
  stages = []
  for index, gone in enumerate(order):
    kept = tuple(c for c in range(source.num_classes) if c not in order)
    roles = {"forget": (gone,), "retain": kept}
    subsets = {
      split: {
        role: datasets.Subset.of(source.splits[split], classes)
        for role, classes in roles.items()
      }
      for split in ("train", "test")
    }
    test_sets = {
      role: scenarios.TestSet(subset, tuple(range(source.num_classes)))
      for role, subset in subsets["test"].items()
    }
    stages.append(
      scenarios.Stage(index, "forget", subsets["train"], test_sets, roles)
    )

  return scenarios.Scenario(
    stages=tuple(stages),
    num_classes=source.num_classes,
    summarize=lambda rows, reading, metric: {
      role: rows[-1][role][reading][metric] for role in roles
    },
    test_sets=tuple(test_sets),
    description={"order": list(order)},
    seeds={},
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drifting(AwayAndNear):
  """Has another loss in each stage under one name, which cannot work."""

  def rounds(self, stage, data):
    loss = functools.partial(self.weighed, weight=stage.index)
    return (Round("near", loss, {"kept": ("retain",)}, 1),)

  def weighed(self, *given, weight):
    loss, parts = self.near(*given)
    return weight * loss, parts


def walk(workdir, stop=lambda: False, kind=AwayAndNear, observer=None):
  """Runs a method; returns the last state and results.json."""
  source = datasets.DATASETS["synthetic"](num_classes=4, per_class=16, size=8)
  scenario = forgetting(source, (3, 1))
  model = Linear(source.num_classes)
  run = run_lib.Run(
    method=kind(
      model=model,
      problem=Classification(),
      num_classes=source.num_classes,
      num_stages=len(scenario.stages),
    ),
    scenario=scenario,
    optimizer=optim.build(
      groups=(("all", ".*"),), epochs=1, all={"name": "adam", "lr": 0.01}
    ),
    preprocess=preprocess.Preprocess(size=8, train="none", eval="native"),
    settings=settings.Settings(
      seed=0, batch_size=8, log_every=2, checkpoint_every=2
    ),
    mesh=sharding.make_mesh(),
    rules=(),
    should_stop=stop,
    observer=observer,
  )
  image = {"image": jnp.zeros((1, 8, 8, 3))}
  params = jax.device_get(model.init(jax.random.key(0), image)["params"])
  workdir.mkdir(exist_ok=True)
  writer = writer_lib.Writer(workdir, total_stages=2, quiet=True)
  facts = {
    "global_batch_size": 8,
    "data": source.description,
    "scenario": scenario.description,
  }
  state, _ = run.walk(run.start(params), workdir, facts, writer)
  record = json.loads((workdir / "results.json").read_text())
  for name in ("wall_seconds", "examples_per_second", "stage_seconds"):
    del record[name]
  return state, record


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Returns the last state and the results of an uninterrupted run."""
  return walk(tmp_path_factory.mktemp("whole"))


def test_rounds_run_in_order_and_finish_once_each(whole):
  state, record = whole
  assert record["train_steps"] == 2 * (3 + 6 + 3)
  assert state.memory["count"] == 2


def test_rounds_of_one_name_share_a_step(whole):
  _, record = whole
  assert record["compiled_steps"] == {
    "begin_stage": 1,
    "evaluate": 1,
    "train/away": 1,
    "train/near": 1,
  }


class Donated(Observer):
  """Notes whether the first step deletes the parameters that it is given."""

  def __init__(self):
    self.given, self.deleted = None, None

  def on_stage(self, stage, event, state):
    self.given = jax.tree.leaves(state.params) if event == "train" else None

  def on_step(self, stage, step, metrics):
    self.deleted = [leaf.is_deleted() for leaf in self.given]


def test_a_step_is_given_the_state_s_buffers(tmp_path):
  seen = Donated()
  with pytest.raises(Interrupted):
    walk(tmp_path, lambda: True, observer=seen)
  assert seen.deleted == [True, True]


def test_losses_of_one_name_must_be_one_loss(tmp_path):
  with pytest.raises(RuntimeError, match="'train/near' has the compiled"):
    walk(tmp_path, kind=Drifting)


def test_it_forgets_and_keeps(whole):
  _, record = whole
  assert record["final"]["forget"] < 0.5 < record["final"]["retain"]


# Each of 2 stages has 3 + 6 + 3 steps, 3 batches and 5 batches of test sets.
def test_resume_in_any_round_is_bit_for_bit(tmp_path, whole):
  # After steps 2, 3 (a round's last), 6, 9 (another's), 11, 12, and in the
  # second measurement.
  for calls in (2, 1, 3, 3, 2, 1, 3 + 4):
    asked = iter(range(1, calls + 1))
    with pytest.raises(Interrupted):
      walk(tmp_path, lambda asked=asked, last=calls: next(asked) == last)
  state, record = walk(tmp_path)
  assert record == whole[1]
  pairs = (state.params, whole[0].params), (state.memory, whole[0].memory)
  for ours, theirs in pairs:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
