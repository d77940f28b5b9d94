"""Every original config, from its data sets to the first batches, on mocks."""

import dataclasses
import importlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import main
from libml import registry
from libml.datasets import tfds_rows
from libml.devices import sharding
from libml.devices.compiled import Compiled
from libml.images import preprocess
from libml.pipeline import stage_data
from libml.train import rehearsal

BATCH = 4
TENS = [tuple(range(10 * i, 10 * (i + 1))) for i in range(10)]
TWENTIES = [tuple(range(20 * i, 20 * (i + 1))) for i in range(10)]
SESSIONS = 8 * [tuple(range(50))]

# Config -> classes of each stage (None: drawn), names of the last's test sets.
EXPECTED = {
  "cifar100_l2p": (TENS, [f"task_{i}" for i in range(10)]),
  "cifar100_dualprompt": (TENS, [f"task_{i}" for i in range(10)]),
  "imr_dualprompt": (TWENTIES, [f"task_{i}" for i in range(10)]),
  "five_datasets_l2p": (TENS[:5], [f"task_{i}" for i in range(5)]),
  "five_datasets_dualprompt": (TENS[:5], [f"task_{i}" for i in range(5)]),
  "core50_l2p": (SESSIONS, ["test", "test_augmented"]),
  "cifar100_gaussian_l2p": (None, ["test"]),
  "cifar100_gaussian_l2p:shipped": (None, ["test"]),
}


@pytest.fixture(autouse=True)
def mocked(monkeypatch):
  """Two images of each class, of the builder's shape, in its own grey."""

  def as_dataset(self, split, **options):
    del split, options
    feature = self.info.features["image"]
    shape = [size or 16 for size in feature.shape]
    ids = range(self.info.features["label"].num_classes)
    if self.name == "imagenet_r":
      ids = tfds_rows.IMAGENET_R_IDS
    image = feature.encode_example(np.full(shape, grey(self.name), np.uint8))
    data = tf.data.Dataset.from_tensor_slices(np.repeat(list(ids), 2))
    return data.map(lambda label: {"image": image, "label": label})

  monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda _: True)
  with tfds.testing.mock_data(as_dataset_fn=as_dataset):
    yield


def grey(name):
  return 10 + 23 * len(name) % 200


def pipeline(name):
  """Returns a config, its scenario, its method, and a stage's data."""
  module, _, arg = name.partition(":")
  config = importlib.import_module(f"configs.{module}").get_config(arg)
  source, scenario = main.build_scenario(config)
  method = main.build_method(config, scenario.num_classes, len(scenario.stages))
  method.check(scenario)
  chains = registry.build(
    {"preprocess": preprocess.Preprocess},
    "chain",
    "preprocess",
    **registry.plain(config.preprocess),
    size=config.model.image_size,
  )

  def data(stage):
    return stage_data.StageData(
      train=stage.train,
      stage=stage.index,
      epoch_steps=stage.epoch_steps,
      preprocess=chains,
      batch_size=BATCH,
      seed=config.seed,
      mesh=sharding.make_mesh(),
      compiled=Compiled(),
    )

  return source, scenario, method, data


@pytest.mark.parametrize("name", EXPECTED)
def test_first_batches_have_the_right_shape_labels_and_mask(name):
  _, scenario, method, data = pipeline(name)
  classes, test_sets = EXPECTED[name]
  if classes:
    assert [s.classes["learn"] for s in scenario.stages] == classes
    assert scenario.num_classes == 1 + max(map(max, classes))
  else:
    assert (len(scenario.stages), scenario.num_classes) == (200, 100)
    assert sum(bool(stage.test_sets) for stage in scenario.stages) == 20
  assert list(scenario.stages[-1].test_sets) == test_sets

  memory = rehearsal.initial_memory(scenario.num_classes)
  for stage in (scenario.stages[1], scenario.stages[-1]):
    learned = stage.classes["learn"]
    memory = rehearsal.stage_memory(memory, stage, masked=method.mask_classes)
    allowed = np.flatnonzero(np.array(memory["classes"]))
    everything = range(scenario.num_classes)
    assert tuple(allowed) == (
      learned if method.mask_classes else tuple(everything)
    )
    (round_,) = method.rounds(stage, data(stage))
    batch = next(data(stage).stream(round_.streams, 0, 0))["train"]
    assert batch["image"].shape == (BATCH, 224, 224, 3)
    assert batch["image"].dtype == np.float32
    assert set(np.array(batch["label"])) <= set(learned)

  for test_set in stage.test_sets.values():
    batch = next(data(stage).sweep(test_set.subset, augment=test_set.augment))
    assert batch["image"].shape == (BATCH, 224, 224, 3)
    assert 0 <= batch["image"].min() <= batch["image"].max() <= 1
    assert batch["mask"].all()
    np.testing.assert_array_equal(
      batch["label"], test_set.subset.labels[:BATCH]
    )
    assert test_set.classes == tuple(everything)


def test_labels_go_with_the_images_of_their_data_set():
  source, scenario, _, data = pipeline("five_datasets_l2p")
  for part, stage, classes in zip(
    source.parts, scenario.stages, TENS, strict=False
  ):
    test_set = stage.test_sets[f"task_{stage.index}"]
    batch = next(data(stage).sweep(test_set.subset))
    np.testing.assert_allclose(batch["image"], grey(part.name) / 255, atol=0.02)
    assert set(batch["label"]) <= set(classes)
    assert set(test_set.subset.labels) == set(classes)


@pytest.mark.parametrize(
  ("name", "stage", "wanted"),
  [
    # Epochs times whole batches of two images a class.
    ("cifar100_l2p", 3, 5 * (20 // BATCH)),
    ("imr_dualprompt", 3, 50 * (40 // BATCH)),
    ("five_datasets_l2p", 2, 5 * (20 // BATCH)),
    ("core50_l2p", 0, 5 * (100 // BATCH)),
    ("cifar100_gaussian_l2p", 17, 5),
  ],
)
def test_steps_of_a_stage(name, stage, wanted):
  _, scenario, method, data = pipeline(name)
  stage = scenario.stages[stage]
  (round_,) = method.rounds(stage, data(stage))
  assert round_.steps == wanted


def test_steps_of_an_epoch_hold_for_the_roles_that_they_name():
  _, scenario, _, data = pipeline("cifar100_gaussian_l2p")
  stage = scenario.stages[-1]
  kept = stage.train["seen"].take_per_class(1, seed=0)
  stage = dataclasses.replace(stage, train={**stage.train, "buffer": kept})
  found = [data(stage).steps_per_epoch((r,)) for r in stage.train]
  assert found == [5, 5, 100 // BATCH]
