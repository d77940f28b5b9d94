"""LoRA-Sub-DRS, part by part (tests/golden/lora_sub/README.md)."""

import functools

import figures
import jax
import jax.numpy as jnp
import lora_sub_toy as toy
import numpy as np
import optax
import pytest
from flax import traverse_util

from libml import trees
from libml import vectors
from libml.optim import schedules
from libml.problems import prototypes
from libml.scenarios import metrics
from methods import lora_sub
from methods.parts import class_means
from methods.parts import subspace
from models import lora

FIGURES = {
  "lora_sub/lora_sub_forward": {},
  "lora_sub/covariance": {},
  "lora_sub/projected_adam": {},
  "lora_sub/lr_schedule": {},
  "lora_sub/atl": {},
  "lora_sub/ncm": {},
  "lora_sub/lib_metrics": {},
}
# "", or the folder of features with another epsilon in the blocks' norms.
EPSILONS = figures.cases(
  "lora_sub/lora_sub_forward", r"out/(|block_ln_eps_[^/]+/)train/features"
)


@pytest.mark.parametrize("folder", EPSILONS)
def test_features_in_all_weight_modes(golden, tmp_path, folder):
  file = golden("lora_sub", "lora_sub_forward")
  module = toy.model(file)
  if folder:
    epsilon = folder.removeprefix("block_ln_eps_").removesuffix("/")
    module = toy.model(file, block_epsilon=float(epsilon))
  pretrained_params = toy.read_params(file, tmp_path, module)
  old = toy.old_sums(file, "params/", module)
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
    outputs = jax.jit(module.apply)(
      {"params": params}, {"image": toy.image(file["in/image"])}
    )
    theirs = file[f"out/{folder}{mode}/features"]
    toy.close(outputs["features"], theirs, 2e-5, mode)
  stored = trees.flatten(toy.old_sums(file, "after1/", module))
  assert stored.keys() == trees.flatten(total).keys()
  for name, value in stored.items():
    toy.close(trees.flatten(total)[name], value, 1e-6, name)


def test_tokens_weights_and_gradients(golden, tmp_path):
  file = golden("lora_sub", "lora_sub_forward")
  module = toy.model(file)
  old = toy.old_sums(file, "params/", module)
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
    kernel = trees.flatten(tree)[key].reshape(module.width, -1)
    toy.close(kernel, file[f"out/{mode}/block0_k_weight"].T, 1e-6, mode)

  def total(params):
    features = jax.jit(module.apply)({"params": params}, {"image": x})[
      "features"
    ]
    return jnp.sum(features * file["in/cotangent"])

  grads = trees.flatten(jax.grad(total)(params))
  expected = toy.adapters(file, "grad/")
  assert expected.keys() == trees.flatten(lora.split(params)[1]).keys()
  for name, value in expected.items():
    toy.close(grads[name], value, 1e-4 * abs(value).max(), name)


def test_covariance_and_projector(golden, tmp_path):
  file = golden("lora_sub", "covariance")
  module = toy.model(file)
  ours = toy.method(module, threshold=float(file["cfg/threshold"]))
  old = toy.old_sums(file, "params/", module)
  params = lora.subtract(toy.read_params(file, tmp_path, module), old, times=-1)
  images = [
    toy.image(file[f"in/image{number}"])
    for number in range(len([k for k in file if k.startswith("in/image")]))
  ]
  rows = 2 + max(map(len, images))  # of which the mask leaves some out
  sums, tokens = None, 0
  for number, x in enumerate(images):
    mask = jnp.arange(rows) < len(x)
    x = jnp.pad(x, ((0, rows - len(x)), (0, 0), (0, 0), (0, 0)), mode="edge")
    # The pass comes before new adapters are drawn: the merge left B at 0.
    batch = {"image": x, "mask": mask}
    added = jax.jit(ours.moments)(toy.silent(params), {"sums": old}, batch)
    sums = jax.tree.map(jnp.add, sums, added) if sums else added
    tokens += (1 + module.num_patches) * int(mask.sum())
    for block in range(module.depth):
      name = f"out/blocks.{block}/matrix_after_batch{number}"
      if name in file:
        mean = sums[f"encoderblock_{block}"] / tokens
        toy.close(mean, file[name], 1e-5 * file[name].max())
  found = ours.project(sums)
  for i in range(module.depth):
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


@pytest.mark.parametrize(
  "name", figures.cases("lora_sub/covariance", r"in/([^/]+)/matrix")
)
def test_spectra_made_by_hand(golden, name):
  file = golden("lora_sub", "covariance")
  method = toy.method(toy.model(file), threshold=float(file["cfg/threshold"]))
  found = method.project({"block": jnp.asarray(file[f"in/{name}/matrix"])})
  theirs = file.part(f"out/{name}/")
  assert found["kept"]["block"] == theirs.pop("kept")
  ours = found["projectors"]["block"]
  ((kind, value),) = theirs.items()
  if kind == "projection_norm":  # the directions are not determined
    toy.close(np.linalg.norm(ours), value, 1e-5)
  else:
    toy.close(ours, theirs["projection"], 1e-4)


# Reference's name -> ours, transposed.
STEPPED = {
  "lora_A_k.weight": "lora_a",
  "lora_B_k.weight": "lora_b",
  "head.weight": "head/kernel",
  "head.bias": "head/bias",
}


def stepped_tree(file, prefix):
  theirs = file.part(prefix)
  return traverse_util.unflatten_dict(
    {name: theirs[key].T for key, name in STEPPED.items()}, sep="/"
  )


def test_directions_of_the_projected_adam(golden):
  file = golden("lora_sub", "projected_adam")
  _, projector = directions(file)
  toy.close(projector, file["out/projection"], 1e-5)


def directions(file):
  """Compares a file's spectrum; returns which vectors stay, the projector."""
  values, vectors = subspace.eigen(jnp.asarray(file["in/matrix"]))
  keep = subspace.leading(values, float(file["cfg/threshold"]))
  assert keep.sum() == file["out/kept"]
  toy.close(values, file["out/eigenvalues"], 1e-5 * values[0])
  return keep, subspace.projector(vectors, keep, unit_norm=True)


@pytest.mark.parametrize(
  ("decay", "kind"),
  figures.cases("lora_sub/projected_adam", r"out/wd([^/]+)/([^/]+)/.*"),
)
def test_projected_adam_steps(golden, kind, decay):
  file = golden("lora_sub", "projected_adam")
  _, projector = directions(file)
  extra = {
    "plain": {},
    "projected": {
      "left": {"lora_a": projector},
      "right": {"lora_b": projector},
    },
  }
  tx = toy.optimizer(
    file,
    float(decay),
    b1=float(file["cfg/beta1"]),
    b2=float(file["cfg/beta2"]),
    eps=float(file["cfg/eps"]),
  ).tx
  params = stepped_tree(file, "params/")
  state = tx.init(params)
  folder = f"out/wd{decay}/{kind}/"
  number = 1
  while f"in/grad/step{number}/head.bias" in file:
    grads = stepped_tree(file, f"in/grad/step{number}/")
    updates, after = tx.update(grads, state, params, epoch=1, **extra[kind])
    plain, _ = tx.update(grads, state, params, epoch=1)
    state = after
    params = optax.apply_updates(params, updates)
    step = file.part(f"{folder}step{number}/")
    for theirs, name in STEPPED.items():
      expected = step.pop(f"update/{theirs}").T
      tolerance = 1e-5 * abs(expected).max()
      toy.close(trees.flatten(plain)[name], expected, tolerance, name)
      if kind == "projected" and theirs.startswith("lora"):
        expected = step.pop(f"projected_update/{theirs}").T
        tolerance = 1e-5 * abs(expected).max()
        toy.close(trees.flatten(updates)[name], expected, tolerance, name)
      expected = step.pop(f"params/{theirs}").T
      toy.close(trees.flatten(params)[name], expected, 1e-6, name)
    assert not step
    number += 1
  assert number > 2
  moments = trees.flatten(state)
  for theirs, name in STEPPED.items():
    for moment, mine in (("exp_avg", "mu"), ("exp_avg_sq", "nu")):
      expected = file[f"{folder}moments/{theirs}/{moment}"].T
      (found,) = [
        value
        for key, value in moments.items()
        if key.endswith(f"{mine}/{name}")
      ]
      toy.close(found, expected, 1e-6 * abs(expected).max())


@pytest.mark.parametrize(
  ("length", "epochs"),
  figures.cases("lora_sub/lr_schedule", r"out/K(\d+)_epochs(\d+)"),
)
def test_learning_rate_of_each_epoch(golden, length, epochs):
  file = golden("lora_sub", "lr_schedule")
  rate = schedules.build("late_quarter_cosine", lr=1.0, epochs=int(length))
  expected = file[f"out/K{length}_epochs{epochs}"]
  assert len(expected) == int(epochs)
  for per_epoch in (1, 3, 40):
    for step in {0, per_epoch - 1}:
      done = (np.arange(len(expected)) * per_epoch + step + 1) / per_epoch
      toy.close([float(rate(np.float32(e))) for e in done], expected, 1e-6)


# The golden README: what is 0 up to rounding, and where a distance is.
ZERO = ("one_class", "batch_of_one")
NOISY = ("duplicates", "lone_sample")


@pytest.mark.parametrize(
  "case", figures.cases("lora_sub/atl", r"in/([^/]+)/features")
)
def test_triplet_loss_and_gradients(golden, case):
  file = golden("lora_sub", "atl")
  features = jnp.asarray(file[f"in/{case}/features"])
  label = jnp.asarray(file[f"in/{case}/labels"], jnp.int32)
  stored = file[f"in/{case}/prototypes"]
  # Rows before and after those of known classes.
  padded = jnp.pad(stored, ((2, 2), (0, 0)))
  known = jnp.pad(jnp.ones(len(stored), bool), 2)
  others = (label, padded, known)
  margin = float(file[f"in/{case}/margin"])
  loss = functools.partial(lora_sub.augmented_triplet, margin=margin)
  value, grad = jax.jit(jax.value_and_grad(loss))(features, *others)
  tolerance = 1e-3 if case in NOISY else 1e-6 if case in ZERO else 1e-5
  toy.close(value, file[f"out/{case}/loss"], tolerance)
  tolerance = 1e-4 if case == "duplicates" else 1e-6
  toy.close(grad, file[f"grad/{case}/features"], tolerance)
  of_units = functools.partial(lora_sub.unit_triplet, margin=margin)
  label, padded, known = others
  units = (vectors.unit(features), label, vectors.unit(padded), known)
  grad = jax.jit(jax.grad(of_units))(*units)
  toy.close(grad, file[f"grad/{case}/normalized"], tolerance)


def test_prototypes_and_predictions(golden, tmp_path):
  file = golden("lora_sub", "ncm")
  stored = file.part("out/prototype")
  module = toy.model(file, num_classes=len(stored))
  ours = toy.method(module)
  old = toy.old_sums(file, "params/", module)
  params = lora.subtract(toy.read_params(file, tmp_path, module), old, times=-1)
  params = lora.merge(params, 1.0)
  add = functools.partial(class_means.batch_sums, ours)
  sums, number = None, 0
  while f"in/train{number}/image" in file:
    batch = {
      "image": toy.image(file[f"in/train{number}/image"]),
      "label": jnp.asarray(file[f"in/train{number}/label"], jnp.int32),
    }
    batch["mask"] = jnp.ones(len(batch["label"]), bool)
    added = jax.jit(add)(params, {}, batch)
    sums = jax.tree.map(jnp.add, sums, added) if sums else added
    number += 1
  means = prototypes.means(**sums)
  for c, value in stored.items():
    toy.close(means[int(c)], value, 2e-5)
  memory = {"prototypes": means, "known": jnp.ones(len(stored), bool)}
  outputs = jax.jit(ours.predict)(
    params, memory, {"image": toy.image(file["in/test/image"])}
  )
  toy.close(outputs[""]["features"], file["out/test_features"], 2e-5)
  predictions = jnp.argmax(outputs[""]["logits"], axis=-1)
  np.testing.assert_array_equal(predictions, file["out/predictions"])
  hits = np.mean(predictions == file["in/test/label"])
  toy.close(hits, file["out/accuracy"], 1e-6)


def test_predictions_of_random_features(golden):
  file = golden("lora_sub", "ncm")
  stored = jnp.asarray(file["in/random/prototypes"])
  logits = prototypes.cosine_logits(
    jnp.asarray(file["in/random/features"]),
    stored,
    jnp.ones(len(stored), bool),
  )
  np.testing.assert_array_equal(
    jnp.argmax(logits, axis=-1), file["out/random/predictions"]
  )


def test_metrics_of_libcontinual(golden):
  file = golden("lora_sub", "lib_metrics")
  table = file["in/accuracy_table"].T  # theirs: [after task, on task]
  for task in range(len(table)):
    for name, ours in (
      ("forgetting", metrics.libcontinual_forgetting),
      ("backward_transfer", metrics.libcontinual_backward),
      ("task_average", metrics.avg_acc),
    ):
      toy.close(ours(table, task), file[f"out/{name}"][task], 1e-12, name)
