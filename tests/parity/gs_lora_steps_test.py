"""GS-LoRA and GS-LoRA++ against the reference (golden/gslora)."""

import dataclasses
import functools
import json

import face_toy as toy
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from libml import optim
from libml import problems
from libml import trees
from libml.optim import group_lasso
from libml.problems import prototypes
from libml.train import steps
from libml.train import train_state
from methods import gs_lora
from methods import gs_lora_plus
from methods.parts import class_means
from models import lora

SIZES = dict(image_size=16, depth=6, dropout=0.0)
OUT, GRAD = 5e-6, 5e-5
# Variant -> (placement, grouping).
VARIANTS = {
  "plain": ("ffn", "block"),
  "bound_reached": ("ffn", "block"),
  "alpha_off": ("ffn", "block"),
  "proto": ("ffn", "block"),
  "proto_reached": ("ffn", "block"),
  "all_reached": ("ffn", "block"),
  "mixed": ("ffn", "block"),
  "single_lora": ("ffn", "lora"),
  "single_matrix": ("ffn", "matrix"),
  "single_attention": ("attention", "block"),
}
ADAPTERS = {"ffn": toy.FFN, "attention": toy.ATTENTION}


@pytest.fixture(scope="module")
def file(golden):
  return golden("gslora", "gs_lora_loss")


@pytest.fixture(params=toy.TYPES)
def dtype(request):
  """Returns a type in which a test runs."""
  with toy.precision(request.param):
    yield request.param


def options(file, name):
  """Returns the numbers of a variant."""
  return json.loads(str(file["meta"]))["variants"][name]


def method(dtype, name, numbers):
  """Returns the variant's method, with the norms in the loss."""
  placement, grouping = VARIANTS[name]
  settings = {
    "model": toy.model(dtype, **SIZES, lora=ADAPTERS[placement]),
    "problem": problems.PROBLEMS["classification"](),
    "num_classes": 10,
    "num_stages": 1,
    "bound": numbers["BND"],
    "grouping": grouping,
    "subgradient": True,
  }
  if not numbers["proto"]:
    return gs_lora.GsLora(**settings)
  return gs_lora_plus.GsLoraPlus(**settings, proto_bound=numbers["BND_pro"])


def params(file, folder, module, placement):
  base = toy.tree(file, "params/base/", folder, module)
  found = toy.adapters(file, f"params/lora_{placement}/")
  return jax.tree.map(jnp.asarray, toy.with_adapters(base, found, module))


def memory(file, dtype, numbers):
  return {
    "classes": jnp.ones(10, bool),
    "beta": jnp.asarray(numbers["beta"], dtype),
    "alpha": jnp.asarray(numbers["alpha"], dtype),
    "prototypes": jnp.asarray(file["in/prototypes"], dtype),
    "proto_forget": jnp.asarray(numbers["w_f"], dtype),
    "proto_retain": jnp.asarray(numbers["w_r"], dtype),
  }


def batch(file, dtype, step):
  """Returns the step's batches of 6 and 5; two to forget serve three steps."""

  def take(theirs, number):
    image = file[f"in/{theirs}_image"][number].transpose(0, 2, 3, 1)
    label = file[f"in/{theirs}_label"][number]
    return {
      "image": jnp.asarray(image, dtype),
      "label": jnp.asarray(label, jnp.int32),
    }

  return {"retain": take("remain", step), "forget": take("forget", step % 2)}


def optimizer(file):
  """Returns the authors' AdamW on the adapters; its state[0] is a gradient."""
  meta = json.loads(str(file["meta"]))["optimizer"]
  built = optim.build(
    groups=(("lora", r".*/lora_[ab]"), ("rest", r".*")),
    epochs=1,
    clip_norm=float("inf"),
    lora={
      "name": "adam",
      "lr": meta["lr"],
      "weight_decay": meta["weight_decay"],
      "b1": meta["betas"][0],
      "b2": meta["betas"][1],
      "eps": meta["eps"],
    },
    rest=None,
  )
  seen = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda updates, state, params=None: (updates, updates),
  )
  return dataclasses.replace(built, tx=optax.chain(seen, built.tx))


def check_after(state, theirs, dtype):
  """Compares the adapters after a step by the README's rule."""
  _, found = lora.split(state.params)
  found = trees.flatten(found)
  assert found.keys() == theirs.keys()
  if dtype == "float64":
    for name, leaf in found.items():
      np.testing.assert_allclose(
        leaf, theirs[name], rtol=0, atol=1e-9 * abs(theirs[name]).max()
      )
    return
  # The first steps of Adam are signs, of gradients near 0 as well.
  off = [np.ravel(abs(found[name] - theirs[name])) for name in found]
  off = np.concatenate(off)
  assert off.max() < 3e-4
  assert np.mean(off < 2e-6) >= 0.999


def check_parts(metrics, file, variant, step, numbers, dtype):
  """Compares what a step logs."""
  names = {
    "loss": "total",
    "retain": "ce_remain",
    "forget": "ce_forget",
    "structure": "structure",
  }
  if numbers["proto"]:
    names |= {"proto_retain": "kl_remain", "proto_forget": "kl_forget"}
  for ours, theirs in names.items():
    value = file[f"out/{variant}/{theirs}"][step]
    toy.close(metrics[ours], value, dtype=dtype, float32=OUT, name=ours)
  for ours, theirs in (("retain", "remain"), ("forget", "forget")):
    hits = metrics[f"train_accuracy_{ours}"]
    precision = file[f"out/{variant}/precision_{theirs}"][step]
    assert float(100 * hits) == pytest.approx(precision, rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_three_steps(file, tmp_path, dtype, variant):
  numbers = options(file, variant)
  placement, _ = VARIANTS[variant]
  ours, tx = method(dtype, variant, numbers), optimizer(file)
  state = train_state.TrainState(
    step=jnp.zeros((), jnp.int32),
    steps_per_epoch=jnp.ones((), jnp.int32),
    params=params(file, tmp_path, ours.model, placement),
    opt_state=None,
    memory=memory(file, dtype, numbers),
    rng=jax.random.key(0),
  )
  state = state.replace(opt_state=tx.tx.init(state.params))
  step = steps.make_train_step(ours.loss, ours.extra_args, tx)

  for number in range(3):
    # Operation by operation: all variants share what is compiled.
    state, metrics = step(state, batch(file, dtype, number))
    if number == 0:
      stored = toy.adapters(file, f"grad/{variant}/")
      assert len(stored) in (24, 36)
      for name, value in stored.items():
        grad = trees.flatten(state.opt_state[0])[name]
        toy.close(grad, value, dtype=dtype, float32=GRAD, name=name)
    check_parts(metrics, file, variant, number, numbers, dtype)
    theirs = toy.adapters(file, f"after{number + 1}/{variant}/")
    check_after(state, theirs, dtype)


def test_variants_reach_the_bounds_that_they_are_named_for(file):
  for variant in VARIANTS:
    numbers = options(file, variant)
    lost = file[f"out/{variant}/ce_forget"][0]
    reached = variant in ("bound_reached", "all_reached")
    assert (lost > numbers["BND"]) == reached, variant
    if numbers["proto"]:
      far = file[f"out/{variant}/kl_forget"][0]
      reached = variant in ("proto_reached", "all_reached")
      assert (far > numbers["BND_pro"]) == reached, variant


GROUPINGS = {
  "block": ("ffn", "block"),
  "lora": ("ffn", "lora"),
  "matrix": ("ffn", "matrix"),
  "attention": ("attention", "block"),
}


@pytest.mark.parametrize("name", GROUPINGS)
def test_norms_of_groups_and_their_gradient(file, tmp_path, dtype, name):
  placement, grouping = GROUPINGS[name]
  module = toy.model(dtype, **SIZES, lora=ADAPTERS[placement])
  groups = group_lasso.of_adapters(grouping, module.blocks)
  start = params(file, tmp_path, module, placement)
  value, grads = jax.value_and_grad(group_lasso.penalty)(start, groups)
  wanted = file[f"out/structure/{name}"]
  toy.close(value, wanted, dtype=dtype, float32=OUT)
  for leaf, stored in toy.adapters(file, f"grad/structure/{name}/").items():
    ours = trees.flatten(grads)[leaf]
    toy.close(ours, stored, dtype=dtype, float32=GRAD, name=leaf)


@pytest.mark.parametrize("grouping", ["block", "lora", "matrix"])
def test_gradient_of_fresh_adapters_is_finite(file, tmp_path, dtype, grouping):
  module = toy.model(dtype, **SIZES, lora=toy.FFN)
  groups = group_lasso.of_adapters(grouping, module.blocks)
  start = trees.map_named(
    lambda name, x: jnp.zeros_like(x) if name.endswith("lora_b") else x,
    params(file, tmp_path, module, "ffn"),
  )
  value, grads = jax.value_and_grad(group_lasso.penalty)(start, groups)
  wanted = file[f"out/structure_B0/{grouping}"]
  toy.close(value, wanted, dtype=dtype, float32=OUT)
  broken = bool(file[f"out/structure_B0/{grouping}_grad_has_nan"])
  assert broken == (grouping == "matrix")
  for name, grad in trees.flatten(grads).items():
    assert np.isfinite(grad).all(), name
    if name.endswith("lora_b"):
      assert not grad.any(), name


def sweep(file, dtype, size=4):
  """Yields both parts' images as one, in batches; the last one is padded."""
  image = np.concatenate([file["in/forget_image"], file["in/remain_image"]])
  label = np.concatenate([file["in/forget_label"], file["in/remain_label"]])
  for start in range(0, len(label), size):
    rows = np.arange(start, start + size)
    mask, rows = rows < len(label), rows % len(label)
    yield {
      "image": jnp.asarray(image[rows].transpose(0, 2, 3, 1), dtype),
      "label": jnp.asarray(label[rows], jnp.int32),
      "mask": jnp.asarray(mask),
    }


def test_prototypes_are_those_of_the_reference(golden, tmp_path, dtype):
  file = golden("gslora", "prototypes")
  module = toy.model(
    dtype,
    image_size=16,
    width=16,
    mlp_dim=32,
    num_heads=2,
    dropout=0.0,
    lora=toy.FFN,
  )
  ours = gs_lora_plus.GsLoraPlus(
    model=module,
    problem=problems.PROBLEMS["classification"](),
    num_classes=10,
    num_stages=1,
  )
  base = toy.tree(file, "params/", tmp_path, module)
  start = toy.with_adapters(base, toy.adapters(file, "params/"), module)
  total = None
  add = functools.partial(class_means.batch_sums, ours)
  for part in sweep(file, dtype):
    added = jax.jit(add)(start, {}, part)
    total = jax.tree.map(jnp.add, total, added) if total else added
  np.testing.assert_array_equal(total["counts"], file["out/count"])
  assert not file["out/valid"].all()
  found = prototypes.means(total["sums"], total["counts"])
  toy.close(found, file["out/prototypes"], dtype=dtype, float32=OUT)
  assert not found[~file["out/valid"]].any()


@pytest.mark.parametrize("name", prototypes.DISTANCES)
def test_distances_to_prototypes(golden, dtype, name):
  file = golden("gslora", "prototypes")
  features = jnp.asarray(file["in/kl_emb"], dtype)
  targets = jnp.asarray(file["in/kl_prototypes"], dtype)[file["in/kl_label"]]
  distance = prototypes.DISTANCES[name]
  value, grad = jax.value_and_grad(distance)(features, targets)
  toy.close(value, file[f"out/{name}"], dtype=dtype, float32=OUT)
  toy.close(grad, file[f"grad/{name}/emb"], dtype=dtype, float32=OUT)


def test_divergence_is_from_the_prototype(golden, dtype):
  file = golden("gslora", "prototypes")
  prototype, feature = (
    jnp.asarray(file[f"in/f64/hand_{name}"], dtype)[None]
    for name in ("prototype", "emb")
  )
  found = prototypes.kl_divergence(feature, prototype)
  toy.close(found, file["out/hand_kl"], dtype=dtype, float32=OUT)
  by_hand = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
  assert float(found) == pytest.approx(by_hand, rel=1e-6)
