"""Who is forgotten, kept and missing, as the released code has it."""

import random
import re

import face_toy as toy
import numpy as np
import pytest

from configs import casia100
from libml import scenarios
from libml.datasets import embedded

FIGURES = {"gslora/class_order": {}}
STORED = toy.stored("class_order")
ROLES = {"forget": "forget", "retain": "remain"}


def names(pattern):
  """Returns the first parts of the stored names that match, each once."""
  found = (re.match(f"out/({pattern})(/|$)", name) for name in STORED)
  return sorted({match[1] for match in found if match})


def classes(subset):
  return set(subset.labels.tolist())


def forget(stored, **options):
  """Returns the stages that forget from the end of the stored order."""
  order = tuple(stored["out/order"].tolist())
  source = embedded.synthetic(
    num_classes=len(order), per_class=10, test_per_class=2
  )
  return scenarios.forgetting(source, order=order, **options).stages


def shuffled(count, seed):
  order = list(range(count))
  random.Random(seed).shuffle(order)
  return order


def tasks(name):
  """Returns the number of requests that a case has."""
  return len(names(rf"{name}/task\d+"))


def test_order_is_python_s_shuffle(golden):
  stored = golden("gslora", "class_order")
  order, seed = stored["out/order"].tolist(), toy.meta(stored)["seed_of_order"]
  assert order == shuffled(len(order), seed)
  if (seed, len(order)) == (1337, len(casia100.ORDER)):
    assert tuple(order) == casia100.ORDER


@pytest.mark.parametrize("name", names(r"order_seed\d+_n\d+"))
def test_orders_of_other_seeds(golden, name):
  stored = golden("gslora", "class_order")
  seed, count = map(int, re.findall(r"\d+", name))
  assert stored[f"out/{name}"].tolist() == shuffled(count, seed)


@pytest.mark.parametrize("name", names(r"cl\d+x\d+"))
def test_requests_one_after_the_other(golden, name):
  stored = golden("gslora", "class_order")
  size = len(stored[f"out/{name}/task0/forget"])
  stages = forget(
    stored, num_requests=tasks(name), classes_per_request=size, shots=2
  )
  for i, stage in enumerate(stages):
    for role, theirs in ROLES.items():
      wanted = stored[f"out/{name}/task{i}/{theirs}"].tolist()
      assert sorted(stage.classes[role]) == sorted(wanted), (i, role)
      assert classes(stage.train[role]) == set(wanted)
    old = stored[f"out/{name}/task{i}/old"].tolist() if i else []
    assert sorted(stage.classes["old"]) == sorted(old)


@pytest.mark.parametrize("name", names(r"single/Y\d+"))
def test_one_request(golden, name):
  stored = golden("gslora", "class_order")
  count = int(name.split("Y")[1])
  (stage,) = forget(stored, classes_per_request=count, shots=1)
  for role, theirs in ROLES.items():
    wanted = stored[f"out/{name}/{theirs}"].tolist()
    assert sorted(stage.classes[role]) == sorted(wanted)


def test_missing_classes_come_from_the_start(golden):
  stored, case = golden("gslora", "class_order"), "out/open_cl"
  stages = forget(
    stored,
    num_requests=tasks("open_cl"),
    classes_per_request=len(stored[f"{case}/task0/forget"]),
    missing=len(stored[f"{case}/task0/missing"]),
    shots=1,
  )
  for i, stage in enumerate(stages):
    name = f"{case}/task{i}"
    forgotten = stored[f"{name}/forget"].tolist()
    assert sorted(stage.classes["forget"]) == sorted(forgotten)
    missing = set(stored[f"{name}/missing"].tolist())
    assert set(stage.classes["missing"]) == missing
    assert classes(stage.test_sets["missing"].subset) == missing
    trained = set(stored[f"{name}/remain_train"].tolist())
    assert classes(stage.train["retain"]) == trained
    tested = [stage.test_sets[p].subset for p in ("kept", "missing")]
    later = range(i + 1, len(stages))
    tested += [stage.test_sets[f"request_{j}"].subset for j in later]
    together = set().union(*map(classes, tested))
    assert together == set(stored[f"{name}/remain_test_all"].tolist())


def test_missing_classes_of_a_single_step_come_from_the_end(golden):
  stored, case = golden("gslora", "class_order"), "out/open_single"
  (stage,) = forget(
    stored,
    classes_per_request=len(stored[f"{case}/forget"]),
    missing=len(stored[f"{case}/missing"]),
    missing_from="end",
    shots=1,
  )
  for role, theirs in (
    ("missing", "missing"),
    ("retain", "remain_train"),
    ("forget", "forget"),
  ):
    wanted = stored[f"{case}/{theirs}"]
    np.testing.assert_array_equal(sorted(stage.classes[role]), sorted(wanted))
