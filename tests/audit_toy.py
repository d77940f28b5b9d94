"""A task whose classes only a network that learned them tells apart.

An image is noise of bits, and which third of it counts is marked. Its class is
that third and whether two bits there are equal: a network that never saw the
third has no reason to compare them, and random features are of no help.
"""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from libml import datasets
from libml import optim
from libml import scenarios
from libml.devices import sharding
from libml.devices.compiled import Compiled
from libml.images import preprocess
from libml.pipeline import stage_data
from libml.problems import losses
from libml.problems.classification import Classification
from libml.train import steps
from methods import METHODS

CLASSES = 6
# The pairs of pixels that count, and the pixels that mark which.
_PAIRS = ((8, 9), (24, 25), (48, 49))
_MARKS = ((0, 1), (2, 3), (4, 5))


class Small(nn.Module):
  """Two hidden layers; what comes out of the second are the features."""

  num_classes: int = CLASSES
  class_heads: ClassVar = ("head",)

  @nn.compact
  def __call__(self, inputs, *, train=False):
    x = inputs["image"][..., 0].reshape(len(inputs["image"]), -1)
    x = nn.relu(nn.Dense(64)(2 * x - 1))
    x = nn.relu(nn.Dense(32)(x))
    return {"features": x, "logits": nn.Dense(self.num_classes, name="head")(x)}


def split(count, seed):
  """Returns so many images a class."""
  rng = np.random.default_rng(seed)
  labels = np.tile(np.arange(CLASSES, dtype=np.int32), count)
  bits = rng.integers(0, 2, (len(labels), 64))
  bits[:, :6] = 0
  rows = np.arange(len(labels))
  first, second = np.array(_PAIRS)[labels // 2].T
  bits[rows, second] = bits[rows, first] ^ (labels % 2)
  bits[rows[:, None], np.array(_MARKS)[labels // 2]] = 1
  images = (255 * bits).astype(np.uint8).reshape(-1, 8, 8, 1)
  return datasets.Split(np.repeat(images, 3, axis=-1), labels)


def trained(train, *, steps_taken=1500):
  """Returns a network of all images, and one of all but the last third's."""
  images = jnp.asarray(train.images / np.float32(255))
  labels = jnp.asarray(train.labels)
  model = Small()
  tx = optax.adamw(2e-3, weight_decay=0.1)

  def step(carry, key, *, rows):
    params, moments = carry
    i = jax.random.choice(key, rows, (128,))

    def loss(params):
      logits = model.apply({"params": params}, {"image": images[i]})["logits"]
      return losses.cross_entropy(logits, labels[i]).mean()

    updates, moments = tx.update(jax.grad(loss)(params), moments, params)
    return (optax.apply_updates(params, updates), moments), None

  def fit(rows):
    params = model.init(jax.random.key(0), {"image": images[:1]})["params"]
    keys = jax.random.split(jax.random.key(1), steps_taken)
    carry, _ = jax.lax.scan(
      functools.partial(step, rows=rows), (params, tx.init(params)), keys
    )
    return carry[0]

  every = np.arange(len(labels))
  kept = np.resize(np.flatnonzero(train.labels < 4), len(labels))
  both = jax.device_get(
    jax.jit(lambda r: jax.lax.map(fit, r))(jnp.stack([every, kept]))
  )
  first = jax.tree.map(lambda leaf: leaf[0], both)
  return first, jax.tree.map(lambda leaf: leaf[1], both)


@dataclasses.dataclass(frozen=True, eq=False)
class World:
  """What an audit of the request to forget the last third is handed.

  Attributes:
    first: Parameters before.
    retrained: Those of a network that never saw the third.
    method: Hides the classes.
    scenario: Of one request.
    data: Its images, on a mesh of all devices.
  """

  first: dict
  retrained: dict
  method: object
  scenario: scenarios.Scenario
  data: stage_data.StageData

  def placed(self, params):
    """Returns parameters on all devices."""
    return sharding.place(params, (), self.data.mesh)

  def hidden(self):
    """Returns what the method makes of the first model."""
    groups = (("all", r".*"),)
    optimizer = optim.build(groups=groups, epochs=1, all=None)
    state = steps.first_state(
      self.method, optimizer, self.placed(self.first), jax.random.key(0)
    )
    stage = self.scenario.stages[0]
    state = self.method.before_stage(state, stage, self.data)
    return self.method.after_stage(state, stage, self.data).params

  def ask(self, audits, params):
    """Returns what the audits find in a model."""
    return audits.run(
      method=self.method,
      params=params,
      memory={},
      stage=self.scenario.stages[0],
      test_sets=self.scenario.before,
      data=self.data,
    )


def source():
  """Returns the images."""
  return datasets.Source(
    name="parities",
    class_names=tuple("abcdef"),
    splits={"train": split(400, 0), "test": split(50, 1)},
    origin="drawn here",
  )


def world():
  """Returns the task with both networks trained."""
  images = source()
  scenario = scenarios.forgetting(images, requests=((4, 5),), ratio=0.1)
  first, retrained = trained(images.splits["train"])
  return World(
    first=first,
    retrained=retrained,
    method=METHODS["hide_head"](
      model=Small(),
      problem=Classification(),
      num_classes=CLASSES,
      num_stages=1,
    ),
    scenario=scenario,
    data=stage_data.StageData(
      train=scenario.stages[0].train,
      stage=0,
      preprocess=preprocess.Preprocess(size=8, train="none", eval="native"),
      batch_size=128,
      seed=0,
      mesh=sharding.make_mesh(),
      compiled=Compiled(),
    ),
  )
