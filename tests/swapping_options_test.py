"""What Knowledge Swapping has beside the paper, each option in a real run."""

import nowhere
import numpy as np
import pytest
from swap_tiny import tiny
from walks import watch

import main
from methods.parts import pairing

SCALE = 0.5


def run(argument, folder, **changes):
  with nowhere.leave_nothing():
    return watch(tiny(argument, **changes), folder)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
  """Returns a run that forgets, then learns under guard, and moves columns."""
  folder = tmp_path_factory.mktemp("guarded")
  return run("order=fl,protect,columns", folder)


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
  """Returns a run of proximal steps and a fold; one of two blocks is zero."""
  folder = tmp_path_factory.mktemp("folded")
  return run("order=lf,proximal,fold", folder, method__alpha=0.01)


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
  """Returns a run of all terms at once, of rate 0."""
  still = {"optimizer__lora__lr": 0.0, "optimizer__lora__min_lr": 0.0}
  return run("order=joint", tmp_path_factory.mktemp("joint"), **still)


def changed(first, last):
  """Returns the names of the parameters that differ."""
  return {
    name.removeprefix("params/")
    for name in first
    if name.startswith("params/")
    and not np.array_equal(first[name], last[name])
  }


def test_what_is_forgotten_stays_in_the_loss_of_a_later_stage(guarded):
  steps = {n for n in guarded.record["compiled_steps"] if "train/" in n}
  assert steps == {"train/forget", "train/protect"}
  assert set(guarded.record["compiled_steps"].values()) == {1}
  assert len(guarded.metrics) == 8
  for told in guarded.metrics[4:]:
    value = told["learn"] + 0.2 * told["retain"]
    value = value + 0.2 * max(0.0, 30.0 - told["forget"])
    value = float(value + 0.005 * told["structure"])
    assert float(told["loss"]) == pytest.approx(value, rel=1e-5)
  assert not any("learn" in told for told in guarded.metrics[:4])


def test_a_stage_before_which_nothing_is_forgotten_protects_nothing(guarded):
  first, second = guarded.run.scenario.stages
  retained = first.train["retain"].labels
  assert set(retained.tolist()) == {0, 1}, "nothing is learned yet"
  ours = guarded.run.method
  names = [ours.rounds(s, guarded.run.data(s))[0].name for s in (first, second)]
  assert names == ["forget", "protect"]
  assert set(second.train["forget"].labels.tolist()) == {2, 3}


def test_new_columns_alone_move(guarded):
  for first, last in zip(guarded.begun, guarded.trained, strict=True):
    moved = {n for n in changed(first, last) if "lora" not in n}
    assert moved == {"head/kernel", "head/bias"}
    for name in ("head/kernel", "head/bias"):
      now, before = (state[f"params/{name}"] for state in (last, first))
      same = (now == before).reshape(-1, 6)
      assert same[:, :4].all() and not same[:, 4:].any(), name


def test_proximal_steps_make_groups_exactly_zero(folded):
  reports = folded.record["reports"]
  assert [report["zero_groups"] for report in reports] == [1, 1]
  assert reports[0]["group_norm"]["encoderblock_0"] == 0
  leaves = [
    leaf
    for name, leaf in folded.trained[0].items()
    if name.startswith("params/") and "encoderblock_0/MlpBlock_0" in name
    if "lora" in name
  ]
  assert len(leaves) == 4 and not any(leaf.any() for leaf in leaves)


def test_proximal_steps_keep_the_norms_out_of_the_loss(folded):
  for told in folded.metrics[:4]:
    value = float(told["learn"] + 0.2 * told["retain"])
    assert float(told["loss"]) == pytest.approx(value, rel=1e-6)
  assert folded.metrics[0]["structure"] > 0.5
  assert folded.run.optimizer.proximal == {"lora"}
  extra = folded.run.method.extra_args({})
  assert float(extra["alpha"]) == pytest.approx(0.01)


def test_subgradients_give_the_optimizer_no_weight(joint):
  assert joint.run.method.extra_args({}) == {}
  assert not joint.run.optimizer.proximal


def test_folded_kernels_take_in_the_adapters(folded):
  before, after = folded.trained[0], folded.begun[1]
  alive = {
    f"Transformer/encoderblock_1/MlpBlock_0/Dense_{i}/kernel" for i in (0, 1)
  }
  moved = changed(before, after)
  assert {name for name in moved if "lora" not in name} == alive
  for name in alive:
    layer = f"params/{name.removesuffix('/kernel')}"
    a, b = (np.float64(before[f"{layer}/lora_{x}"]) for x in "ab")
    kernel = before[f"{layer}/kernel"] + SCALE * a @ b
    np.testing.assert_allclose(after[f"{layer}/kernel"], kernel, atol=1e-7)
    assert abs(SCALE * a @ b).max() > 1e-5
  for name, leaf in after.items():
    if name.startswith("params/") and name.endswith("lora_b"):
      assert not leaf.any(), name
    if name.startswith("params/") and name.endswith("lora_a"):
      bound = np.sqrt(6 / (51 * len(leaf)))
      assert 0.7 * bound < abs(leaf).max() <= bound, name
  # Within a stage they stay.
  moved = changed(folded.begun[1], folded.trained[1])
  assert moved and all("lora" in name for name in moved)


def test_folding_needs_fresh_moments():
  config = tiny("order=lf,fold", method__restart_optimizer=False)
  with pytest.raises(ValueError, match=r"set method\.restart_optimizer=True"):
    main.build_method(config, 6, 2)


@pytest.mark.parametrize(
  ("option", "value"),
  [("alpha", -0.1), ("bound", float("inf")), ("learn_weight", float("nan"))],
)
def test_numbers_out_of_range_are_named(option, value):
  config = tiny(**{f"method__{option}": value})
  with pytest.raises(ValueError, match=rf"method\.{option}=.* must be"):
    main.build_method(config, 6, 3)


def test_stage_without_a_rate_moves_nothing(joint):
  assert not changed(joint.begun[0], joint.trained[0])
  (report,) = joint.record["reports"]
  assert set(report["moved_norm"].values()) == {0.0}
  assert len(report["moved_norm"]) == 2


def test_joint_objective_is_the_sum_of_all_terms(joint):
  assert len(joint.metrics) == 4
  for told in joint.metrics:
    assert told["forget"] < 30
    value = told["learn"] + told["retain"] + 0.2 * (30.0 - told["forget"])
    value = float(value + 0.005 * told["structure"])
    assert float(told["loss"]) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("sizes", [(3, 3, 3), (3, 2, 4)])
def test_three_streams_come_apart_as_they_went_in(sizes):
  rng = np.random.default_rng(0)
  batches = [{"label": rng.normal(size=(size, 2))} for size in sizes]
  joined = pairing.join(*batches)
  assert len(joined["label"]) == sum(sizes)
  for found, given in zip(pairing.part(joined, *sizes), batches, strict=True):
    np.testing.assert_array_equal(found["label"], np.float32(given["label"]))


def test_joint_stage_has_one_step(joint):
  compiled = joint.record["compiled_steps"]
  assert {n for n in compiled if "train/" in n} == {"train/swap"}
  assert set(compiled.values()) == {1}
  assert all({"learn", "forget", "retain"} <= set(m) for m in joint.metrics)
