"""GS-LoRA in the real loop: what a request changes, and what stays."""

import dataclasses

import jax
import numpy as np
import pytest
from gs_toy import tiny
from walks import watch

from libml import trees
from libml.devices.compiled import Compiled
from methods import gs_lora_plus
from models import edits as edits_lib
from models import lora
from models import vit

BLOCKS = [f"Transformer/encoderblock_{number}" for number in range(3)]
LAYERS = [f"{block}/MlpBlock_0/Dense_{i}" for block in BLOCKS for i in (0, 1)]
SCALE = 0.5
ROUNDS = 3  # ends of epochs 2 (alpha comes on), 3 (beta decays) and 4


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def run(workdir):
  return watch(tiny(), workdir)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
  """Returns the same run with averaged weights beside, from epoch 1 on."""
  return watch(tiny(method__average_epoch=1), tmp_path_factory.mktemp("mean"))


def params(host):
  """Returns a state's parameters as a tree."""
  flat = {
    tuple(name.split("/")[1:]): leaf
    for name, leaf in host.items()
    if name.startswith("params/")
  }
  return lora.join({}, _nested(flat))


def _nested(flat):
  tree = {}
  for path, leaf in flat.items():
    place = tree
    for part in path[:-1]:
      place = place.setdefault(part, {})
    place[path[-1]] = leaf
  return tree


def images(run, stage=0):
  """Returns the first batch of a stage's images to retain."""
  data = run.run.data(run.run.scenario.stages[stage])
  return next(data.sweep(data.subset(["retain"])))


def logits(run, tree):
  return jax.jit(run.run.method.apply)(tree, images(run))["logits"]


def begun(run, stage):
  """Returns the state when a stage's training began."""
  return run.begun[ROUNDS * stage]


def trained(run, stage):
  return run.trained[ROUNDS * stage + ROUNDS - 1]


def zero_blocks(run, stage):
  """Returns the blocks of which a request left every adapter exactly 0."""
  flat = trained(run, stage)
  return {
    block
    for block in BLOCKS
    if not any(
      leaf.any()
      for name, leaf in flat.items()
      if f"{block}/MlpBlock" in name and name.endswith(("lora_a", "lora_b"))
    )
  }


def epoch_steps(run, stage):
  data = run.run.data(run.run.scenario.stages[stage])
  return data.steps_per_epoch(("retain",))


# Adapters: drawn, folded, kept on disk.


def test_fresh_adapters_leave_the_function_bit_for_bit(run):
  plain = vit.build("smoke", depth=3, image_size=8, num_classes=6)
  base, _ = lora.split(params(begun(run, 0)))
  expected = jax.jit(plain.apply)({"params": base}, images(run))["logits"]
  assert np.array_equal(logits(run, params(begun(run, 0))), expected)
  assert np.array_equal(logits(run, params(run.start)), expected)


@pytest.mark.parametrize("stage", [1, 2])
def test_folding_leaves_the_function_to_rounding(run, stage):
  before, after = trained(run, stage - 1), begun(run, stage)
  assert all(not after[f"params/{layer}/lora_b"].any() for layer in LAYERS)
  found = logits(run, params(after))
  np.testing.assert_allclose(found, logits(run, params(before)), atol=2e-5)
  # And the edit is no rounding.
  base, _ = lora.split(params(before))
  fresh = lora.split(params(after))[1]
  old = logits(run, lora.join(base, fresh))
  assert abs(np.subtract(found, old)).max() > 2e-3


def test_some_blocks_become_zero_and_not_all(run):
  counts = [len(zero_blocks(run, stage)) for stage in range(3)]
  assert 1 <= sum(counts) < 9 and max(counts) < 3
  assert [r["zero_groups"] for r in run.record["reports"]] == counts


@pytest.mark.parametrize("stage", [0, 1])
def test_kernels_of_zero_blocks_keep_every_bit(run, stage):
  before, after = trained(run, stage), begun(run, stage + 1)
  changed = {
    name.removeprefix("params/")
    for name in before
    if name.endswith("/kernel")
    and not np.array_equal(before[name], after[name])
  }
  alive = set(BLOCKS) - zero_blocks(run, stage)
  assert changed == {
    f"{layer}/kernel" for layer in LAYERS if layer.startswith(tuple(alive))
  }


def test_zero_blocks_stay_zero_under_weight_decay(run):
  assert run.run.optimizer.proximal == {"lora"}
  assert run.record["config"]["optimizer"]["lora"]["weight_decay"] == 0.05
  counts = iter([int(m["zero_groups"]) for m in run.metrics])
  for stage in range(3):
    mine = [next(counts) for _ in range(4 * epoch_steps(run, stage))]
    assert mine == sorted(mine) and mine[0] == 0
    assert mine[-1] == len(zero_blocks(run, stage))
  assert next(counts, None) is None


def test_nothing_but_adapters_is_trained(run):
  for first, last in zip(run.begun, run.trained, strict=True):
    changed = {n for n in first if not np.array_equal(first[n], last[n])}
    assert changed <= {f"params/{x}/lora_{y}" for x in LAYERS for y in "ab"}
  moments = {
    name
    for name, leaf in trees.flatten(run.state.opt_state).items()
    if np.ndim(leaf)
  }
  assert len(moments) == 2 * 2 * len(LAYERS)
  assert all(name.endswith(("/lora_a", "/lora_b")) for name in moments)


def test_later_adapters_are_drawn_smaller(run):
  for stage in range(3):
    for layer in LAYERS:
      a = begun(run, stage)[f"params/{layer}/lora_a"]
      bound = (1.0 if stage == 0 else np.sqrt(6 / 51)) / np.sqrt(len(a))
      assert 0.7 * bound < abs(a).max() <= bound


def test_edits_on_disk_are_the_change_of_the_weights(run, workdir):
  edits = edits_lib.read_all(workdir)
  base, _ = lora.split(params(run.start))
  final, _ = lora.split(lora.merge(params(trained(run, 2)), SCALE))
  found = edits_lib.apply(base, edits.values())
  undone = edits_lib.apply(final, [edits[1]], times=-1)
  others = edits_lib.apply(base, [edits[2], edits[0]])
  for ours, theirs in ((found, final), (undone, others)):
    for name, leaf in trees.flatten(ours).items():
      wanted = trees.flatten(theirs)[name]
      np.testing.assert_allclose(leaf, wanted, atol=1e-6, err_msg=name)
  assert [edit.classes for edit in edits.values()] == [(5,), (4,), (3,)]
  for stage, edit in edits.items():
    assert edit.scale == SCALE
    assert {g for g, flag in edit.zero.items() if flag} == zero_blocks(
      run, stage
    )


def test_report_counts_what_is_touched(run):
  for stage, report in enumerate(run.record["reports"]):
    alive = [b for b in BLOCKS if b not in zero_blocks(run, stage)]
    flat = trained(run, stage)
    kernels = [flat[f"params/{x}/kernel"] for x in LAYERS]
    per_block = sum(k.size for k in kernels) // 3
    assert report["groups"] == 3
    assert report["touched_weights"] == per_block * len(alive)
    for block in BLOCKS:
      name = block.removeprefix("Transformer/")
      assert (report["group_norm"][name] > 0) == (block in alive)
      assert (report["change_norm"][name] > 0) == (block in alive)


# The weights of the terms, over epochs and requests.


def test_alpha_and_beta_change_at_their_epochs_alone(run):
  seen = [
    (float(host["memory/alpha"]), float(host["memory/beta"]))
    for host in run.begun
  ]
  f = np.float32
  assert seen == [
    pair
    for beta in (0.2, 0.3, 0.4)
    for pair in ((0, f(beta)), (f(0.42), f(beta)), (f(0.42), f(1e-4)))
  ]
  method, stages = run.run.method, run.run.scenario.stages
  for stage in stages:
    per_epoch = epoch_steps(run, stage.index)
    rounds = method.rounds(stage, run.run.data(stage))
    assert [r.steps for r in rounds] == [n * per_epoch for n in (2, 1, 1)]


def test_alpha_acts_from_its_epoch_on(run, tmp_path):
  asked, until = iter(range(1, 1000)), 3 * epoch_steps(run, 0) + 1
  measured = 6 + 1  # batches of the measurement before, and the check's
  config = tiny(method__alpha=0.0)
  off = watch(config, tmp_path, lambda: next(asked) == until + measured)
  assert len(off.trained) >= 1
  for name, leaf in off.trained[0].items():
    assert np.array_equal(leaf, run.trained[0][name]), name
  norm = [float(m["structure"]) for m in run.metrics]
  free = [float(m["structure"]) for m in off.metrics]
  first = 2 * epoch_steps(run, 0)
  assert norm[: first + 1] == free[: first + 1]
  assert norm[first + 1] < free[first + 1]


def test_average_is_that_of_the_merged_weights_by_numpy(run, averaged):
  assert len(averaged.trained) == len(run.trained), "rounds as without"
  for stage in range(3):
    after = averaged.merged[stage + 1]
    for layer in LAYERS:
      kernel = f"{layer}/kernel"
      base = np.float64(begun(averaged, stage)[f"params/{kernel}"])
      merged = []
      for host in averaged.trained[ROUNDS * stage : ROUNDS * (stage + 1)]:
        a, b = (np.float64(host[f"params/{layer}/lora_{x}"]) for x in "ab")
        merged.append(base + SCALE * a @ b)
      mean = merged[0]  # epoch 1 copies, whatever earlier requests left
      for epoch in merged[1:]:
        mean = 0.9 * mean + 0.1 * epoch
      found = base + after[f"memory/average/{kernel}"]
      np.testing.assert_allclose(found, mean, atol=1e-6)
      assert abs(mean - merged[-1]).max() > 1e-3 or not merged[-1].any()


def test_averaging_does_not_touch_the_training(run, averaged):
  for ours, theirs in zip(averaged.trained, run.trained, strict=True):
    for name, leaf in theirs.items():
      assert np.array_equal(ours[name], leaf), name
  matrix = run.record["matrix"]["accuracy"]
  assert averaged.record["matrix"]["accuracy"] == matrix


def test_averaged_weights_predict_beside(averaged):
  method, state = averaged.run.method, averaged.state
  readings = method.predict(state.params, state.memory, images(averaged))
  assert set(readings) == {"", "_average"}
  base, fresh = lora.split(begun_params := params(begun(averaged, 2)))
  average = _nested(
    {
      tuple(name.split("/")[2:]): leaf
      for name, leaf in averaged.merged[-1].items()
      if name.startswith("memory/average/")
    }
  )
  whole = lora.join(lora.subtract(base, average, times=-1), fresh)
  found = readings["_average"]["logits"]
  np.testing.assert_allclose(found, logits(averaged, whole), atol=2e-5)
  assert abs(found - logits(averaged, begun_params)).max() > 0.05
  assert abs(found - readings[""]["logits"]).max() > 0.05
  assert set(averaged.record["matrix"]) == {"accuracy", "accuracy_average"}


def test_one_step_serves_all_rounds_and_requests(run, averaged):
  for seen in (run, averaged):
    compiled = seen.record["compiled_steps"]
    assert [n for n in compiled if n.startswith("train/")] == ["train/train"]
    assert set(compiled.values()) == {1}
  assert averaged.record["compiled_steps"]["average"] == 1


def test_subgradient_makes_no_block_zero(run, tmp_path):
  once = {"scenario__num_requests": 1, "method__subgradient": True}
  (report,) = watch(tiny(**once), tmp_path).record["reports"]
  assert report["zero_groups"] == 0 and zero_blocks(run, 0)
  for block in zero_blocks(run, 0):
    assert report["group_norm"][block.removeprefix("Transformer/")] > 1e-3


# What a request's hook makes.


def begin(run, ours, stage):
  """Returns what the stage's hook makes of the run's last state."""
  data = dataclasses.replace(run.run.data(stage), compiled=Compiled())
  state = run.state
  extra = ours.init_memory(
    state.params, run.run.optimizer.groups.trainable(state.params)
  )
  memory = {**extra, **run.state.memory}
  return ours.before_stage(state.replace(memory=memory), stage, data)


def plus(run, **changes):
  fields = {
    field.name: getattr(run.run.method, field.name)
    for field in dataclasses.fields(run.run.method)
  }
  weights = {"proto_forget": (0.1, 0.2, 0.3), "proto_retain": (0.4, 0.5, 0.6)}
  return gs_lora_plus.GsLoraPlus(**fields, **weights, **changes)


def class_means(run, tree, stage):
  """Returns {class: mean feature} over all that a stage has of it."""
  data = run.run.data(stage)
  features, labels = [], []
  for batch in data.sweep(data.subset(["forget", "retain"])):
    found = run.run.method.apply(tree, batch)["features"]
    features += list(np.float64(found)[batch["mask"]])
    labels += list(batch["label"][batch["mask"]])
  features, labels = np.array(features), np.array(labels)
  return {c: features[labels == c].mean(axis=0) for c in set(labels)}


def test_prototypes_are_those_of_the_model_that_the_request_meets(run):
  stage = run.run.scenario.stages[1]
  found = begin(run, plus(run), stage).memory
  expected = class_means(run, run.state.params, stage)
  assert set(expected) == {*stage.classes["forget"], *stage.classes["retain"]}
  for label in range(6):
    mean = expected.get(label, np.zeros(16))  # forgotten and missing ones
    np.testing.assert_allclose(found["prototypes"][label], mean, atol=1e-4)
  first = class_means(run, params(run.start), stage)
  assert any(abs(expected[c] - first[c]).max() > 1e-2 for c in expected)
  assert found["proto_forget"] == np.float32(0.2)
  assert found["proto_retain"] == np.float32(0.5)


@pytest.mark.parametrize("number", [0, 1])
def test_prototypes_may_be_of_the_first_model_alone(run, number):
  ours = plus(run, proto_source="pretrained")
  stage = run.run.scenario.stages[number]
  found = begin(run, ours, stage).memory["prototypes"]
  # A later request leaves what is there: here, what memory started with.
  assert bool(np.any(found)) == (number == 0)


def test_further_classes_are_masked_in_training(run):
  stage = run.run.scenario.stages[1]
  assert run.state.memory["classes"].all()
  known = {**stage.classes, "known": (0, 1, 2, 4)}
  stage = dataclasses.replace(stage, classes=known)
  state = begin(run, run.run.method, stage)
  assert state.memory["classes"].tolist() == [1, 1, 1, 0, 1, 0]
