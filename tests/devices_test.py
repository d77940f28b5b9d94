"""A run finds the same, whatever devices it lies on, and goes on elsewhere.

GS-LoRA is in processes_test.
"""

import ast
import json
import pathlib
import re
import shutil

import children
import jax
import lora_toy
import numpy as np
import pytest
import walks
from toy import tiny

import main
from benchmarks import scaling
from libml import trees
from libml.devices import collectives
from libml.devices import sharding
from libml.train import checkpoint
from libml.train.observer import Observer
from libml.train.walk import Interrupted

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = (ROOT / "docs" / "devices.md").read_text()
FSDP, TENSOR_PARALLEL = (
  ast.literal_eval(rules)
  for rules in re.findall(r"--my_config\.sharding='(.+?)'", DOCS, re.DOTALL)
)
# The documented rule, on arrays as small as these.
SMALL_FSDP = tuple((name, rule + ":512") for name, rule in FSDP)

# Name -> devices, mesh, sharding.
PLACES = {
  "one": (1, {"data": -1, "model": 1}, ()),
  "tensor_parallel": (8, {"data": 4, "model": 2}, TENSOR_PARALLEL),
  "fsdp": (8, {"data": -1, "model": 1}, SMALL_FSDP),
}
STOP = 4 + 3 + 2  # in the second stage of 4 steps


def run(workdir, place, stop=None):
  """Runs the tiny config, up to a call of should_stop; writes what it saw."""
  _, mesh, rules = PLACES[place]
  asked, cut = iter(range(1, 1000)), set()

  class Cut(Observer):
    def on_start(self, run, state):
      for name, leaf in trees.flatten(state).items():
        if not leaf.is_fully_replicated:
          cut.add(name)

  config = tiny(epochs=1, mesh=mesh, sharding=rules)
  try:
    main.execute(config, workdir, lambda: next(asked) == stop, observer=Cut())
  except Interrupted:
    assert stop is not None
  (workdir / "cut.json").write_text(json.dumps(sorted(cut)))


@pytest.fixture(scope="module")
def go(tmp_path_factory):
  """Returns a runner of the tiny config at a place."""
  logs = tmp_path_factory.mktemp("logs")

  def start(workdir, place, stop=None):
    devices, *_ = PLACES[place]
    return children.start(
      run, workdir, place, stop, log=logs / workdir.name, devices=devices
    )

  def wait(*processes):
    codes, printed = children.finish(*processes)
    assert not any(codes), printed

  return start, wait


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory, go):
  """Returns the workdirs of whole runs by place, and of stopped ones."""
  start, wait = go
  folder = tmp_path_factory.mktemp("runs")
  wait(start(folder / "one", "one"), start(folder / "fsdp", "fsdp"))
  wait(
    start(folder / "tensor_parallel", "tensor_parallel"),
    start(folder / "half_one", "one", STOP),
    start(folder / "half_fsdp", "fsdp", STOP),
  )
  return folder


def record(workdir):
  return json.loads((workdir / "results.json").read_text())


def assert_same(ours, theirs):
  """Compares results: accuracies and counts exactly, losses nearly."""
  assert ours["finished"]
  assert ours["matrix"] == theirs["matrix"]
  assert ours["summary"] == theirs["summary"]
  assert ours["observed"] == theirs["observed"]
  for mine, other in zip(ours["test_sets"], theirs["test_sets"], strict=True):
    mine, other = trees.flatten(mine), trees.flatten(other)
    assert mine.keys() == other.keys()
    for name, value in mine.items():
      np.testing.assert_allclose(value, other[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("place", ["tensor_parallel", "fsdp"])
def test_eight_devices_find_what_one_finds(workdirs, place):
  ours = record(workdirs / place)
  assert ours["devices"]["count"] == 8
  assert_same(ours, record(workdirs / "one"))


def run_lora(workdir, place):
  """Runs LoRA-Sub-DRS on all devices; writes its states around each task."""
  _, _, rules = PLACES[place]
  config = lora_toy.tiny(scenario__num_tasks=2, sharding=rules)
  seen = walks.watch(config, workdir)
  states = zip(seen.begun, seen.trained, seen.merged, strict=True)
  np.savez(
    workdir / "states.npz",
    **{
      f"{task}/{when}/{name}": leaf
      for task, three in enumerate(states)
      for when, state in enumerate(three)
      for name, leaf in state.items()
    },
  )


def test_eight_devices_learn_in_the_subspace_that_one_finds(tmp_path):
  places = ("one", "fsdp")
  codes, printed = children.finish(
    *(
      children.start(
        run_lora,
        tmp_path / place,
        place,
        log=tmp_path / f"{place}.log",
        devices=PLACES[place][0],
      )
      for place in places
    )
  )
  assert codes == [0, 0], printed
  one, eight = (record(tmp_path / place) for place in places)
  assert eight["devices"]["count"] == 8
  assert_same(eight, one)
  assert set(eight["compiled_steps"].values()) == {1}
  one, eight = (np.load(tmp_path / p / "states.npz") for p in places)
  assert one.files == eight.files
  for kind in ("memory/prototypes", "memory/projectors/", "lora_b", "sums/"):
    assert any(kind in name and eight[name].any() for name in one.files), kind
  for name in one.files:
    np.testing.assert_allclose(
      eight[name], one[name], rtol=1e-3, atol=1e-4, err_msg=name
    )


def test_rules_cut_what_they_name(workdirs):
  block = "params/Transformer/encoderblock_0"
  attention = f"{block}/MultiHeadDotProductAttention_0"
  cut = json.loads((workdirs / "tensor_parallel" / "cut.json").read_text())
  assert set(cut) == {
    *(f"{attention}/{n}/kernel" for n in ("query", "key", "value", "out")),
    *(f"{attention}/{n}/bias" for n in ("query", "key", "value")),
    f"{block}/MlpBlock_0/Dense_0/kernel",
    f"{block}/MlpBlock_0/Dense_0/bias",
    f"{block}/MlpBlock_0/Dense_1/kernel",
  }
  cut = json.loads((workdirs / "fsdp" / "cut.json").read_text())
  assert f"{block}/MlpBlock_0/Dense_0/kernel" in cut
  assert "params/prompt_pool/prompt" in cut, "what is trained, too"
  assert any(n.startswith("opt_state/") for n in cut), "and its moments"
  assert json.loads((workdirs / "one" / "cut.json").read_text()) == []


@pytest.mark.parametrize(
  ("before", "after"), [("fsdp", "one"), ("one", "tensor_parallel")]
)
def test_checkpoints_serve_on_other_devices(
  tmp_path, workdirs, go, before, after
):
  start, wait = go
  workdir = tmp_path / f"{before}_to_{after}"
  shutil.copytree(workdirs / f"half_{before}", workdir)
  assert record(workdir)["stages_done"] == 1
  process = start(workdir, after)
  wait(process)
  assert "cannot be used" not in process.log.read_text()
  ours = record(workdir)
  assert ours["devices"]["count"] == PLACES[after][0]
  assert_same(ours, record(workdirs / "one"))


def test_checksum_is_that_of_the_values_wherever_they_lie():
  mesh = sharding.make_mesh()
  rng = np.random.default_rng(0)
  tree = {
    "float": rng.normal(size=(6, 4)).astype(np.float32),
    "half": jax.numpy.bfloat16(rng.normal(size=(4, 3))),
    "bool": rng.random((2, 3, 2)) < 0.5,
    "int": np.int32(7),
    "key": jax.random.key(0),
  }
  whole = checkpoint.fingerprint(tree)
  cut = sharding.place(tree, ((".*", "fsdp:1"),), mesh)
  assert not cut["float"].is_fully_replicated
  assert checkpoint.fingerprint(cut) == whole
  flat = tree["float"].ravel()
  damages = {
    "bit": np.where(np.arange(24) == 5, np.nextafter(flat, 9), flat),
    "zeros": np.where(np.arange(24) < 16, 0, flat),
    "order": flat[::-1],
  }
  for name, damaged in damages.items():
    damaged = {**tree, "float": damaged.astype(np.float32).reshape(6, 4)}
    assert checkpoint.fingerprint(damaged) != whole, name


RULES = {
  "unknown": ("fsdq", r"'\.\*' for w: Unknown sharding rule 'fsdq'.*'fsdp'"),
  "bytes": ("fsdp:4k", "Unknown sharding rule"),
  "axis": (("modle",), "no mesh axis 'modle'.*'data', 'model'"),
  "size": (("data",), r"dimension of 3 \(array \(3, 4\)\) among the 2"),
  "rank": ((None, None, "data"), r"3 axes of an array of \(3, 4\)"),
}


@pytest.mark.parametrize(("rule", "message"), RULES.values(), ids=RULES)
def test_rule_that_does_not_fit_is_named(rule, message):
  with pytest.raises(ValueError, match=message):
    sharding.infer(
      {"w": np.zeros((3, 4))}, ((".*", rule),), sharding.make_mesh()
    )


def test_per_device_batch_size_gives_the_global_one(tmp_path):
  config = tiny(per_device_batch_size=8, batch_size=2, epochs=1)
  found = main.execute(config, tmp_path)
  assert found["devices"]["count"] == 2
  assert found["global_batch_size"] == found["config"]["batch_size"] == 16
  assert config.batch_size == 2, "the caller's config is left alone"


def test_batch_that_devices_cannot_divide_is_named(tmp_path):
  with pytest.raises(
    ValueError, match="batch_size=7 cannot be split evenly over the 2 devices"
  ):
    main.execute(tiny(batch_size=7), tmp_path)


def exchanged(folder):
  """Writes what 8 devices exchange in a step of some configs."""
  found = {}
  for name, argument in (
    ("cifar100_l2p", "smoke"),
    ("cifar100_dualprompt", "smoke"),
    ("cifar10_deit_reference", "smoke,method=finetune"),
  ):
    step = scaling.compile_step(scaling.load(f"{name}:{argument}"))
    total = collectives.exchanged_bytes(step.compiled.as_text())
    found[name] = (total, step.trained_bytes, step.param_bytes)
  (folder / "exchanged.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def traffic(tmp_path_factory):
  folder = tmp_path_factory.mktemp("exchanged")
  log = folder / "log"
  codes, printed = children.finish(
    children.start(exchanged, folder, log=log, devices=8)
  )
  assert codes == [0], printed
  return json.loads((folder / "exchanged.json").read_text())


@pytest.mark.parametrize("name", ["cifar100_l2p", "cifar100_dualprompt"])
def test_devices_exchange_gradients_of_trained_weights_alone(traffic, name):
  total, trained, params = traffic[name]
  assert trained < 0.5 * params, "the backbone is frozen"
  assert trained <= total["all-reduce"] <= trained + 64
  # The choice of prompts: similarities [8, 10] and votes [2, 10].
  assert total.get("all-gather", 0) <= 4 * (8 * 10 + 2 * 10)
  assert set(total) <= {"all-reduce", "all-gather"}


def test_devices_exchange_all_gradients_where_all_is_trained(traffic):
  total, trained, params = traffic["cifar10_deit_reference"]
  assert trained == params <= total["all-reduce"] <= params + 64
