"""LoRA-Sub-DRS in the real loop: where it moves, and what it never touches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from lora_toy import tiny
from walks import watch

import main
from libml import trees
from libml.devices.compiled import Compiled
from libml.optim import projection
from methods.parts import subspace
from models import vit

BLOCKS = [f"encoderblock_{number}" for number in range(2)]
LAYERS = [
  f"Transformer/{block}/MultiHeadDotProductAttention_0/{name}"
  for block in BLOCKS
  for name in ("key", "value")
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return watch(tiny(), tmp_path_factory.mktemp("run"))


def moments(run, task):
  """Returns block -> second moments that a task's pass found."""
  (found,) = [
    sums
    for stage, name, sums in run.sums
    if (stage, name) == (task, "second_moments")
  ]
  return {block: np.float64(found[block]) for block in BLOCKS}


def basis(moment, threshold=0.99):
  """Returns V_k [D, k] by NumPy."""
  values, vectors = np.linalg.eigh(moment)
  total = np.cumsum(values[::-1]) / values.sum()
  return vectors[:, ::-1][:, : 1 + np.argmax(total >= threshold)]


def moved(run, task, layer):
  """Returns what a task changed in A [D, R], and B [R, D]."""
  a, b = f"params/{layer}/lora_a", f"params/{layer}/lora_b"
  begun, trained = run.begun[task], run.trained[task]
  assert not begun[b].any()
  return np.float64(trained[a]) - begun[a], np.float64(trained[b])


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("task", [1, 2])
def test_adapters_move_in_the_subspace_alone(run, task, layer):
  v = basis(moments(run, task)[layer.split("/")[1]])
  assert 1 <= v.shape[1] < 12
  outside = np.eye(16) - v @ v.T
  a, b = moved(run, task, layer)
  assert np.linalg.norm(a) > 1e-3 and np.linalg.norm(b) > 1e-3
  # eigh rounds V_k by about eps x the largest eigenvalue / the gap below V_k.
  assert np.linalg.norm(outside @ a) <= 1e-4 * np.linalg.norm(a)
  assert np.linalg.norm(b @ outside) <= 1e-4 * np.linalg.norm(b)


@pytest.mark.parametrize("layer", LAYERS)
def test_adapters_of_the_first_task_move_freely(run, layer):
  v = basis(moments(run, 1)[layer.split("/")[1]])
  outside = np.eye(16) - v @ v.T
  a, b = moved(run, 0, layer)
  assert np.linalg.norm(outside @ a) > 0.1 * np.linalg.norm(a) > 1e-4
  assert np.linalg.norm(b @ outside) > 0.1 * np.linalg.norm(b) > 1e-4


def test_first_task_is_that_of_an_optimizer_that_projects_nothing(
  run, tmp_path, monkeypatch
):
  monkeypatch.setattr(projection, "project_updates", optax.identity)
  asked = iter(range(1, 100))
  free = watch(tiny(), tmp_path, lambda: next(asked) == 6 + 1)
  assert len(free.trained) == 1 and free.stopped == "after step 6"
  for name, leaf in run.trained[0].items():
    np.testing.assert_allclose(
      free.trained[0][name], leaf, rtol=1e-5, atol=1e-7, err_msg=name
    )


def test_only_adapters_and_head_change_within_a_task(run):
  for begun, trained in zip(run.begun, run.trained, strict=True):
    changed = {n for n in begun if not np.array_equal(begun[n], trained[n])}
    assert changed == {
      "params/head/kernel",
      "params/head/bias",
      *(f"params/{layer}/lora_{x}" for layer in LAYERS for x in "ab"),
    }


def test_kernels_change_by_the_merge_alone(run):
  assert len(run.trained) == len(run.merged) == 3
  for trained, merged in zip(run.trained, run.merged, strict=True):
    kernels = {f"params/{layer}/kernel" for layer in LAYERS}
    changed = {n for n in trained if not np.array_equal(trained[n], merged[n])}
    changed = {n for n in changed if n.startswith("params/")}
    assert changed == {
      *kernels,
      *(f"params/{layer}/lora_b" for layer in LAYERS),
    }
    for layer in LAYERS:
      a, b = (
        np.float64(trained[f"params/{layer}/lora_{x}"]) for x in ("a", "b")
      )
      name = f"{layer}/kernel"
      change = np.float64(merged[f"params/{name}"]) - trained[f"params/{name}"]
      np.testing.assert_allclose(
        change.reshape(16, 16), a @ b, rtol=1e-4, atol=1e-7
      )
      change = merged[f"memory/sums/{name}"] - trained[f"memory/sums/{name}"]
      np.testing.assert_allclose(
        change.reshape(16, 16), a @ b, rtol=1e-4, atol=1e-7
      )


def subtracted(run, task):
  """Returns a plain ViT with the kernels W - S before a task."""
  params = {
    name.removeprefix("params/"): leaf
    for name, leaf in run.start.items()
    if name.startswith("params/") and "lora" not in name
  }
  for trained in run.trained[:task]:
    for layer in LAYERS:
      a, b = (
        np.float64(trained[f"params/{layer}/lora_{x}"]) for x in ("a", "b")
      )
      kernel = params[f"{layer}/kernel"]
      params[f"{layer}/kernel"] = kernel - (a @ b).reshape(kernel.shape)
  params = {n: np.float32(leaf) for n, leaf in params.items()}
  return traverse_util.unflatten_dict(params, sep="/")


@pytest.mark.parametrize("task", [1, 2])
def test_moments_are_those_of_the_subtracted_model(run, task):
  model = vit.build("smoke", depth=2, image_size=8, num_classes=6)
  params = subtracted(run, task)
  expected = dict.fromkeys(BLOCKS, 0.0)
  stage = run.run.scenario.stages[task]
  data = run.run.data(stage)
  batches = list(data.sweep(data.subset(["learn"]), augment=True))
  assert [batch["mask"].sum() for batch in batches] == [8, 8, 8, 6]
  for batch in batches:
    _, seen = model.apply({"params": params}, batch, capture_intermediates=True)
    seen = seen["intermediates"]["Transformer"]
    for block in BLOCKS:
      (x,) = seen[block]["LayerNorm_0"]["__call__"]
      x = np.float64(x[batch["mask"]]).reshape(-1, 16)
      expected[block] += x.T @ x
  for block, found in moments(run, task).items():
    size = abs(expected[block]).max()
    np.testing.assert_allclose(found, expected[block], atol=1e-5 * size)


def test_projectors_have_unit_norm_and_as_many_directions_as_asked(run):
  for task in (1, 2):
    begun = run.begun[task]
    for block, moment in moments(run, task).items():
      v = basis(moment)
      k = begun[f"memory/kept/{block}"]
      assert k == v.shape[1]
      p = begun[f"memory/projectors/{block}"]
      np.testing.assert_allclose(p, v @ v.T / np.sqrt(k), atol=1e-4)
  for block in BLOCKS:
    assert run.begun[0][f"memory/kept/{block}"] == 16
    np.testing.assert_array_equal(
      run.begun[0][f"memory/projectors/{block}"], np.eye(16)
    )


def test_old_prototypes_are_never_touched(run):
  for task in range(3):
    merged, stage = run.merged[task], run.run.scenario.stages[task]
    known = np.isin(np.arange(6), stage.classes["seen"])
    np.testing.assert_array_equal(merged["memory/known"], known)
    prototypes = merged["memory/prototypes"]
    assert prototypes[known].any(axis=1).all() and not prototypes[~known].any()
    for later in run.merged[task:]:
      np.testing.assert_array_equal(
        later["memory/prototypes"][known], prototypes[known]
      )


def means(run, *, augment):
  """Returns the last task's mean feature of each class, {class: [D]}."""
  stage = run.run.scenario.stages[2]
  data = run.run.data(stage)
  features, labels = [], []
  for batch in data.sweep(data.subset(["learn"]), augment=augment):
    found = run.run.method.apply(run.state.params, batch)["features"]
    features += list(np.float64(found[batch["mask"]]))
    labels += list(batch["label"][batch["mask"]])
  features, labels = np.array(features), np.array(labels)
  return {c: features[labels == c].mean(axis=0) for c in stage.classes["learn"]}


def test_prototypes_are_means_of_raw_features(run):
  for label, mean in means(run, augment=False).items():
    found = run.merged[2]["memory/prototypes"][label]
    np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-5)


def test_prediction_has_the_largest_cosine(run):
  final, method = run.merged[2], run.run.method
  prototypes = np.float64(final["memory/prototypes"])
  prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
  stage = run.run.scenario.stages[2]
  for task, test_set in enumerate(stage.test_sets.values()):
    right = []
    for batch in run.run.data(stage).sweep(test_set.subset):
      outputs = method.predict(run.state.params, run.state.memory, batch)[""]
      f = np.float64(outputs["features"])
      f /= np.linalg.norm(f, axis=1, keepdims=True)
      prediction = np.argmax(f @ prototypes.T, axis=1)
      np.testing.assert_array_equal(
        np.argmax(outputs["logits"], axis=1), prediction
      )
      right += list((prediction == batch["label"])[batch["mask"]])
    assert run.record["matrix"]["accuracy"][task][2] == pytest.approx(
      np.mean(right)
    )


def test_class_without_prototype_cannot_win(run):
  memory = {**run.state.memory, "known": jnp.arange(6) == 4}
  batch = {"image": jnp.ones((3, 8, 8, 3))}
  outputs = run.run.method.predict(run.state.params, memory, batch)[""]
  assert (outputs["logits"].argmax(axis=1) == 4).all()


def test_one_step_serves_all_tasks(run):
  compiled = run.record["compiled_steps"]
  assert {"train/train", "second_moments", "class_sums"} <= compiled.keys()
  assert set(compiled.values()) == {1}


def change(run, **options):
  return dataclasses.replace(run.run.method, **options)


def test_threshold_of_one_keeps_all_energy(run):
  method = change(run, threshold=1.0, unit_norm=False)
  found = method.project(
    {b: jnp.float32(m) for b, m in moments(run, 2).items()}
  )
  for block, moment in moments(run, 2).items():
    p = np.float64(found["projectors"][block])
    np.testing.assert_allclose(np.trace(p), found["kept"][block], rtol=1e-5)
    assert np.trace(moment - p @ moment) <= 1e-6 * np.trace(moment)
    # The norm before the attention takes one direction from its inputs.
    assert found["kept"][block] >= 12
  assert subspace.leading(jnp.arange(16.0, 0, -1), 1.0).all()


def test_unit_norm_divides_by_the_root_of_k(run):
  seen = {b: jnp.float32(m) for b, m in moments(run, 2).items()}
  code = change(run, unit_norm=True).project(seen)
  paper = change(run, unit_norm=False).project(seen)
  for block in BLOCKS:
    p, k = np.float64(paper["projectors"][block]), paper["kept"][block]
    assert code["kept"][block] == k > 1
    np.testing.assert_allclose(p @ p, p, atol=1e-5)
    np.testing.assert_allclose(p, p.T, atol=1e-6)
    np.testing.assert_allclose(np.trace(p), k, rtol=1e-5)
    divided = np.float64(code["projectors"][block])
    np.testing.assert_allclose(divided * np.sqrt(k), p, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(divided), 1, rtol=1e-5)


def test_first_task_may_have_epochs_of_its_own(run):
  method = change(run, first_epochs=1)
  (first,), (second,) = (
    method.rounds(stage, run.run.data(stage))
    for stage in run.run.scenario.stages[:2]
  )
  assert (first.steps, second.steps) == (1 * 3, 2 * 3)
  assert first.loss == second.loss == method.loss  # one compiled step


@pytest.mark.parametrize("lora_b", ["zeros", "sparse"])
def test_sparse_b_gives_a_its_gradient_at_once(run, lora_b):
  stage = run.run.scenario.stages[0]
  data = run.run.data(stage)
  data = dataclasses.replace(data, compiled=Compiled())
  method = change(run, lora_b=lora_b)
  state = method.before_stage(run.state, stage, data)
  batch = next(data.stream({"train": ("learn",)}, 0, 0))
  grads, _ = jax.jit(jax.grad(method.loss, has_aux=True))(
    state.params, state.memory, batch, jax.random.key(0)
  )
  sparse = lora_b == "sparse"
  grads, params = trees.flatten(grads), trees.flatten(state.params)
  for layer in LAYERS:
    assert grads[f"{layer}/lora_a"].any() == sparse
    assert ((params[f"{layer}/lora_b"] != 0).sum(axis=1) == sparse).all()


def test_prototypes_may_be_of_augmented_images(run):
  stage = run.run.scenario.stages[2]
  method = change(run, augment_prototypes=True)
  memory = {**run.state.memory, "known": jnp.arange(6) < 4}
  data = dataclasses.replace(run.run.data(stage), compiled=Compiled())
  state = method.after_stage(run.state.replace(memory=memory), stage, data)
  plain, augmented = means(run, augment=False), means(run, augment=True)
  for label, mean in augmented.items():
    np.testing.assert_allclose(
      state.memory["prototypes"][label], mean, rtol=1e-4, atol=1e-5
    )
    assert abs(mean - plain[label]).max() > 1e-3


def test_single_class_and_single_image_stay_finite(tmp_path):
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(3), [5, 1, 12])
  path = tmp_path / "few.npz"
  np.savez(
    path,
    x_train=rng.integers(0, 255, (18, 8, 8, 3), np.uint8),
    y_train=labels,
    x_test=rng.integers(0, 255, (6, 8, 8, 3), np.uint8),
    y_test=np.arange(6) % 3,
  )
  config = tiny(epochs=1, dataset={"name": "npz", "path": str(path)})
  few = watch(config, tmp_path / "run")
  assert few.record["finished"]
  assert len(few.metrics) == 1 + 1 + 1
  for metrics in few.metrics:
    assert np.isfinite(list(metrics.values())).all()
  prototypes = few.merged[-1]["memory/prototypes"]
  assert np.isfinite(prototypes).all() and prototypes.any(axis=1).all()
  for trained in few.trained:
    assert all(np.isfinite(leaf).all() for leaf in trained.values())


def test_adapters_may_stand_on_some_blocks_only(tmp_path):
  layers = r".*encoderblock_1/.*/(query|value)"
  record = main.execute(tiny(model__lora__layers=layers), tmp_path)
  assert record["finished"] and set(record["compiled_steps"].values()) == {1}
