"""LoRA-Sub-DRS, part by part (tests/golden/lora_sub/README.md)."""

import functools

import jax
import jax.numpy as jnp
import lora_sub_toy as toy
import numpy as np
import optax
import pytest
from flax import traverse_util

from libml import trees
from libml.optim import schedules
from libml.problems import prototypes
from libml.scenarios import metrics
from methods import lora_sub
from methods.parts import class_means
from methods.parts import subspace
from models import lora


@pytest.mark.parametrize(
  ("epsilon", "folder"), [(1e-5, "out/"), (1e-6, "out/block_ln_eps_1e-6/")]
)
def test_features_in_all_weight_modes(golden, tmp_path, epsilon, folder):
  file = golden("lora_sub", "lora_sub_forward")
  module = toy.model(block_epsilon=epsilon)
  pretrained_params = toy.read_params(file, tmp_path, module)
  old = toy.old_sums(file, "params/")
  train = lora.subtract(pretrained_params, old, times=-1)
  merged = lora.merge(train, 1.0)
  total = jax.tree.map(jnp.add, old, lora.deltas(train, 1.0))
  modes = {
    "train": train,
    "test": toy.silent(train),
    "subtract": lora.subtract(toy.silent(train), old, times=2),
    "merged": merged,
    "merged_subtract": lora.subtract(merged, total, times=2),
  }
  for mode, params in modes.items():
    outputs = module.apply(
      {"params": params}, {"image": toy.image(file["in/image"])}
    )
    toy.close(outputs["features"], file[f"{folder}{mode}/features"], 2e-5, mode)
  for name, value in trees.flatten(toy.old_sums(file, "after1/")).items():
    toy.close(trees.flatten(total)[name], value, 1e-6, name)


def test_tokens_weights_and_gradients(golden, tmp_path):
  file = golden("lora_sub", "lora_sub_forward")
  module = toy.model()
  old = toy.old_sums(file, "params/")
  params = lora.subtract(toy.read_params(file, tmp_path, module), old, times=-1)
  x = toy.image(file["in/image"])
  tokens = module.apply({"params": params}, x, method="encode")
  toy.close(tokens, file["out/train/tokens"], 2e-5)
  key = f"{toy.ATTENTION.format(0)}/key/kernel"
  for mode, tree in (
    ("train", lora.merge(params, 1.0)),
    ("test", params),
    ("subtract", lora.subtract(params, old, times=2)),
  ):
    kernel = trees.flatten(tree)[key].reshape(32, 32)
    toy.close(kernel, file[f"out/{mode}/block0_k_weight"].T, 1e-6, mode)

  def total(params):
    features = module.apply({"params": params}, {"image": x})["features"]
    return jnp.sum(features * file["in/cotangent"])

  grads = trees.flatten(jax.grad(total)(params))
  expected = toy.adapters(file, "grad/")
  assert len(expected) == 12
  for name, value in expected.items():
    toy.close(grads[name], value, 1e-4 * abs(value).max(), name)


def test_covariance_and_projector(golden, tmp_path):
  file = golden("lora_sub", "covariance")
  ours = toy.method()
  old = toy.old_sums(file, "params/")
  params = lora.subtract(
    toy.read_params(file, tmp_path, ours.model), old, times=-1
  )
  memory = {"sums": old}
  sums, tokens = None, 0
  for number in range(3):
    x = toy.image(file[f"in/image{number}"])
    x = jnp.pad(x, ((0, 8 - len(x)), (0, 0), (0, 0), (0, 0)), mode="edge")
    mask = jnp.arange(8) < len(file[f"in/image{number}"])
    # The pass comes before new adapters are drawn: the merge left B at 0.
    batch = {"image": x, "mask": mask}
    added = jax.jit(ours.moments)(toy.silent(params), memory, batch)
    sums = jax.tree.map(jnp.add, sums, added) if sums else added
    tokens += 17 * int(mask.sum())
    mean = sums["encoderblock_0"] / tokens
    theirs = file[f"out/blocks.0/matrix_after_batch{number}"]
    toy.close(mean, theirs, 1e-5 * theirs.max())
  found = ours.project(sums)
  for i in range(3):
    block, theirs = f"encoderblock_{i}", f"out/blocks.{i}"
    assert tokens == file[f"{theirs}/count"]
    mean = sums[block] / tokens
    toy.close(
      mean, file[f"{theirs}/matrix"], 1e-5 * file[f"{theirs}/matrix"].max()
    )
    values, _ = subspace.eigen(mean)
    expected = file[f"{theirs}/eigenvalues"]
    toy.close(values, expected, 1e-5 * expected.max())
    assert found["kept"][block] == file[f"{theirs}/kept"]
    toy.close(found["projectors"][block], file[f"{theirs}/projection"], 1e-4)


@pytest.mark.parametrize("name", ["gapped", "one", "flat"])
def test_spectra_made_by_hand(golden, name):
  file = golden("lora_sub", "covariance")
  found = toy.method().project(
    {"block": jnp.asarray(file[f"in/{name}/matrix"])}
  )
  assert found["kept"]["block"] == file[f"out/{name}/kept"]
  ours = found["projectors"]["block"]
  if name == "flat":
    norm = file["out/flat/projection_norm"]
    toy.close(np.linalg.norm(ours), norm, 1e-5)
  else:
    toy.close(ours, file[f"out/{name}/projection"], 1e-4)


@pytest.mark.parametrize("kind", ["plain", "projected"])
@pytest.mark.parametrize("decay", [0, 0.01])
def test_four_projected_adam_steps(golden, kind, decay):
  file = golden("lora_sub", "projected_adam")
  ours = {
    "lora_A_k.weight": "lora_a",
    "lora_B_k.weight": "lora_b",
    "head.weight": "head/kernel",
    "head.bias": "head/bias",
  }

  def tree(prefix):
    return traverse_util.unflatten_dict(
      {name: file[prefix + theirs].T for theirs, name in ours.items()}, sep="/"
    )

  values, vectors = subspace.eigen(jnp.asarray(file["in/matrix"]))
  keep = subspace.leading(values, 0.99)
  assert keep.sum() == file["out/kept"]
  toy.close(values, file["out/eigenvalues"], 1e-5 * values[0])
  projector = subspace.projector(vectors, keep, unit_norm=True)
  toy.close(projector, file["out/projection"], 1e-5)
  extra = {
    "plain": {},
    "projected": {
      "left": {"lora_a": projector},
      "right": {"lora_b": projector},
    },
  }
  tx = toy.optimizer(decay).tx
  params = tree("params/")
  state = tx.init(params)
  folder = f"out/wd{decay}/{kind}/"
  for number in range(1, 5):
    updates, after = tx.update(
      tree(f"in/grad/step{number}/"), state, params, epoch=1, **extra[kind]
    )
    plain, _ = tx.update(tree(f"in/grad/step{number}/"), state, params, epoch=1)
    state = after
    params = optax.apply_updates(params, updates)
    step = f"{folder}step{number}/"
    for theirs, name in ours.items():
      expected = file[f"{step}update/{theirs}"].T
      tolerance = 1e-5 * abs(expected).max() + 1e-12
      toy.close(trees.flatten(plain)[name], expected, tolerance, name)
      projected = file.get(f"{step}projected_update/{theirs}")
      if projected is not None:
        toy.close(trees.flatten(updates)[name], projected.T, tolerance, name)
      toy.close(
        trees.flatten(params)[name],
        file[f"{step}params/{theirs}"].T,
        1e-6,
        name,
      )
  moments = trees.flatten(state)
  for theirs, name in ours.items():
    for moment, mine in (("exp_avg", "mu"), ("exp_avg_sq", "nu")):
      expected = file[f"{folder}moments/{theirs}/{moment}"].T
      (found,) = [
        value
        for key, value in moments.items()
        if key.endswith(f"{mine}/{name}")
      ]
      toy.close(found, expected, 1e-6 * abs(expected).max())


@pytest.mark.parametrize(
  ("length", "epochs"), [(1, 1), (2, 2), (5, 5), (20, 20), (50, 40), (50, 50)]
)
def test_learning_rate_of_each_epoch(golden, length, epochs):
  file = golden("lora_sub", "lr_schedule")
  rate = schedules.build("late_quarter_cosine", lr=1.0, epochs=length)
  expected = file[f"out/K{length}_epochs{epochs}"]
  for per_epoch in (1, 3, 40):
    for step in {0, per_epoch - 1}:
      done = [(e * per_epoch + step + 1) / per_epoch for e in range(epochs)]
      toy.close([float(rate(np.float32(e))) for e in done], expected, 1e-6)


ATL = (
  "proto0 proto1 proto5 proto5_margin2 margin_small one_class one_class_proto5 "
  "lone_sample batch_of_one ties ties_proto1 duplicates"
).split()


@pytest.mark.parametrize("case", ATL)
def test_triplet_loss_and_gradient(golden, case):
  file = golden("lora_sub", "atl")
  features = jnp.asarray(file[f"in/{case}/features"])
  label = jnp.asarray(file[f"in/{case}/labels"], jnp.int32)
  stored = file[f"in/{case}/prototypes"]
  padded = jnp.zeros((9, 16)).at[2 : 2 + len(stored)].set(stored)
  known = jnp.isin(jnp.arange(9), jnp.arange(2, 2 + len(stored)))

  def loss(features):
    return lora_sub.augmented_triplet(
      features, label, padded, known, margin=float(file[f"in/{case}/margin"])
    )

  value, grad = jax.jit(jax.value_and_grad(loss))(features)
  loose = case in ("duplicates", "lone_sample")
  tolerance = 1e-3 if loose else 1e-5
  if case in ("one_class", "batch_of_one"):
    tolerance = 1e-6
  toy.close(value, file[f"out/{case}/loss"], tolerance)
  toy.close(
    grad,
    file[f"grad/{case}/features"],
    1e-4 if case == "duplicates" else 1e-6,
  )


def test_prototypes_and_predictions(golden, tmp_path):
  file = golden("lora_sub", "ncm")
  ours = toy.method(num_classes=3)
  old = toy.old_sums(file, "params/")
  params = lora.subtract(
    toy.read_params(file, tmp_path, ours.model), old, times=-1
  )
  params = lora.merge(params, 1.0)
  sums = None
  add = functools.partial(class_means.batch_sums, ours)
  for number in range(3):
    batch = {
      "image": toy.image(file[f"in/train{number}/image"]),
      "label": jnp.asarray(file[f"in/train{number}/label"], jnp.int32),
    }
    batch["mask"] = jnp.ones(len(batch["label"]), bool)
    added = jax.jit(add)(params, {}, batch)
    sums = jax.tree.map(jnp.add, sums, added) if sums else added
  means = prototypes.means(**sums)
  for c in range(3):
    toy.close(means[c], file[f"out/prototype{c}"], 2e-5)
  memory = {"prototypes": means, "known": jnp.ones(3, bool)}
  outputs = ours.predict(
    params, memory, {"image": toy.image(file["in/test/image"])}
  )
  toy.close(outputs[""]["features"], file["out/test_features"], 2e-5)
  np.testing.assert_array_equal(
    jnp.argmax(outputs[""]["logits"], axis=-1), file["out/predictions"]
  )
  logits = prototypes.cosine_logits(
    jnp.asarray(file["in/random/features"]),
    jnp.asarray(file["in/random/prototypes"]),
    jnp.ones(9, bool),
  )
  np.testing.assert_array_equal(
    jnp.argmax(logits, axis=-1), file["out/random/predictions"]
  )


def test_metrics_of_libcontinual(golden):
  file = golden("lora_sub", "lib_metrics")
  table = file["in/accuracy_table"].T  # theirs: [after task, on task]
  for task in range(6):
    for name, ours in (
      ("forgetting", metrics.libcontinual_forgetting),
      ("backward_transfer", metrics.libcontinual_backward),
      ("task_average", metrics.avg_acc),
    ):
      toy.close(ours(table, task), file[f"out/{name}"][task], 1e-6, name)
