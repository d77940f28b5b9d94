"""GS-LoRA and GS-LoRA++ against the reference (golden/gslora)."""

import dataclasses
import functools

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
from methods import METHODS
from methods.parts import class_means
from models import lora

FIGURES = {"gslora/gs_lora_loss": {}, "gslora/prototypes": {}}
OUT, GRAD = 5e-6, 5e-5
STORED = toy.stored("gs_lora_loss")
# Name of a variant -> its numbers.
VARIANTS = toy.meta(STORED)["variants"]


def cases(prefix):
  """Returns the groupings of which figures with this prefix are stored."""
  names = [n.removeprefix(prefix) for n in STORED if n.startswith(prefix)]
  return sorted(n for n in names if not n.endswith("_has_nan"))


@pytest.fixture(scope="module")
def file(golden):
  return golden("gslora", "gs_lora_loss")


@pytest.fixture(params=toy.TYPES)
def dtype(request):
  """Returns a type in which a test runs."""
  with toy.precision(request.param):
    yield request.param


def place(name):
  """Returns placement and grouping of a variant."""
  numbers = VARIANTS[name]
  return numbers.get("pos", "ffn").lower(), numbers.get("group", "block")


def method(file, dtype, name):
  """Returns the variant's method, with the norms in the loss."""
  numbers, (placement, grouping) = VARIANTS[name], place(name)
  settings = {
    "model": toy.model(file, dtype, lora=toy.adapted(file, placement)),
    "problem": problems.PROBLEMS["classification"](),
    "num_classes": toy.num_classes(file),
    "num_stages": 1,
    "bound": numbers["BND"],
    "grouping": grouping,
    "subgradient": True,
  }
  if not numbers["proto"]:
    return METHODS["gs_lora"](**settings)
  return METHODS["gs_lora_plus"](**settings, proto_bound=numbers["BND_pro"])


def params(file, folder, module, placement):
  base = toy.tree(file, "params/base/", folder, module)
  found = toy.adapters(file, f"params/lora_{placement}/")
  return jax.tree.map(jnp.asarray, toy.with_adapters(base, found, module))


def memory(file, dtype, numbers):
  return {
    "classes": jnp.ones(toy.num_classes(file), bool),
    "beta": jnp.asarray(numbers["beta"], dtype),
    "alpha": jnp.asarray(numbers["alpha"], dtype),
    "prototypes": jnp.asarray(file["in/prototypes"], dtype),
    "proto_forget": jnp.asarray(numbers["w_f"], dtype),
    "proto_retain": jnp.asarray(numbers["w_r"], dtype),
  }


def batch(file, dtype, step):
  """Returns a step's batches; after the last one comes the first again."""

  def take(theirs):
    number = step % len(file[f"in/{theirs}_image"])
    return {
      "image": toy.images(file[f"in/{theirs}_image"][number], dtype),
      "label": jnp.asarray(file[f"in/{theirs}_label"][number], jnp.int32),
    }

  return {"retain": take("remain"), "forget": take("forget")}


@pytest.fixture(scope="module")
def optimizer(file):
  """Returns the authors' AdamW on the adapters; its state[0] is a gradient."""
  meta = toy.meta(file)["optimizer"]
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
  tx = optax.chain(seen, built.tx)
  update = jax.jit(tx.update)
  tx = optax.GradientTransformationExtraArgs(tx.init, update)
  return dataclasses.replace(built, tx=tx)


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


def check_parts(metrics, file, variant, step, dtype):
  """Compares what a step logs."""
  names = {
    "loss": "total",
    "retain": "ce_remain",
    "forget": "ce_forget",
    "structure": "structure",
    "proto_retain": "kl_remain",
    "proto_forget": "kl_forget",
  }
  for ours, theirs in names.items():
    value = file[f"out/{variant}/{theirs}"][step]
    if ours.startswith("proto") and not VARIANTS[variant]["proto"]:
      assert ours not in metrics and value == 0  # off
      continue
    toy.close(metrics[ours], value, dtype=dtype, float32=OUT, name=ours)
  for ours, theirs in (("retain", "remain"), ("forget", "forget")):
    hits = float(metrics[f"train_accuracy_{ours}"])
    precision = float(file[f"out/{variant}/precision_{theirs}"][step])
    size = file[f"in/{theirs}_label"].shape[1]
    # A share of whole images; what is logged may be float32.
    assert hits == pytest.approx(round(hits * size) / size, rel=1e-6)
    assert 100 * round(hits * size) / size == pytest.approx(
      precision, rel=1e-11
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps(file, optimizer, tmp_path, variant):
  with toy.precision("float64"):
    start = first_state(file, optimizer, tmp_path, variant, "float64")
    # Operation by operation: all variants share what is compiled.
    check_steps(file, optimizer, start, variant, "float64")


def test_steps_in_float32(file, optimizer, tmp_path):
  variant = next(iter(VARIANTS))
  start = first_state(file, optimizer, tmp_path, variant, "float32")
  check_steps(file, optimizer, start, variant, "float32", compiled=jax.jit)


def first_state(file, optimizer, folder, variant, dtype):
  """Returns the state before a variant's first step."""
  module, (placement, _) = method(file, dtype, variant).model, place(variant)
  start = params(file, folder, module, placement)
  return train_state.TrainState(
    step=jnp.zeros((), jnp.int32),
    steps_per_epoch=jnp.ones((), jnp.int32),
    params=start,
    opt_state=optimizer.tx.init(start),
    memory=memory(file, dtype, VARIANTS[variant]),
    rng=jax.random.key(0),
  )


def check_steps(
  file, optimizer, state, variant, dtype, *, compiled=lambda fn: fn
):
  """Takes a variant's steps, and compares each with the stored one."""
  ours = method(file, dtype, variant)
  step = compiled(steps.make_train_step(ours.loss, ours.extra_args, optimizer))
  for number in range(len(file[f"out/{variant}/total"])):
    state, metrics = step(state, batch(file, dtype, number))
    if number == 0:
      stored = toy.adapters(file, f"grad/{variant}/")
      assert stored.keys() == trees.flatten(lora.split(state.params)[1]).keys()
      for name, value in stored.items():
        grad = trees.flatten(state.opt_state[0])[name]
        toy.close(grad, value, dtype=dtype, float32=GRAD, name=name)
    check_parts(metrics, file, variant, number, dtype)
    theirs = toy.adapters(file, f"after{number + 1}/{variant}/")
    check_after(state, theirs, dtype)


@pytest.mark.parametrize("name", cases("out/structure/"))
def test_norms_of_groups_and_their_gradient(file, tmp_path, dtype, name):
  # One of theirs is a place; there the groups are blocks.
  inside = ("attention", "block") if name == "attention" else ("ffn", name)
  placement, grouping = inside
  module = toy.model(file, dtype, lora=toy.adapted(file, placement))
  groups = group_lasso.of_adapters(grouping, module.blocks)
  start = params(file, tmp_path, module, placement)
  value, grads = jax.value_and_grad(group_lasso.penalty)(start, groups)
  wanted = file[f"out/structure/{name}"]
  toy.close(value, wanted, dtype=dtype, float32=OUT)
  for leaf, stored in toy.adapters(file, f"grad/structure/{name}/").items():
    ours = trees.flatten(grads)[leaf]
    toy.close(ours, stored, dtype=dtype, float32=GRAD, name=leaf)


@pytest.mark.parametrize("grouping", cases("out/structure_B0/"))
def test_gradient_of_fresh_adapters_is_finite(file, tmp_path, dtype, grouping):
  module = toy.model(file, dtype, lora=toy.adapted(file, "ffn"))
  groups = group_lasso.of_adapters(grouping, module.blocks)
  start = trees.map_named(
    lambda name, x: jnp.zeros_like(x) if name.endswith("lora_b") else x,
    params(file, tmp_path, module, "ffn"),
  )
  value, grads = jax.value_and_grad(group_lasso.penalty)(start, groups)
  wanted = file[f"out/structure_B0/{grouping}"]
  toy.close(value, wanted, dtype=dtype, float32=OUT)
  # In the reference the norm of a group of zeros has no gradient.
  broken = bool(file[f"out/structure_B0/{grouping}_grad_has_nan"])
  zero = group_lasso.zeros(start, groups).values()
  assert broken == bool(np.any(list(zero)))
  for name, grad in trees.flatten(grads).items():
    assert np.isfinite(grad).all(), name
    if name.endswith("lora_b"):
      assert not grad.any(), name


def joined(file, dtype):
  """Returns both parts' images and labels as one batch."""
  parts = [
    toy.inputs({n: file[f"in/{p}_{n}"] for n in ("image", "label")}, dtype, "")
    for p in ("forget", "remain")
  ]
  return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)


def sweep(file, dtype):
  """Yields all images once, in batches; the last one is padded."""
  whole, size = joined(file, dtype), toy.meta(file)["batch_size"]
  total = len(whole["label"])
  for start in range(0, total, size):
    rows = np.arange(start, start + size)
    mask, rows = rows < total, rows % total
    yield {**{n: x[rows] for n, x in whole.items()}, "mask": jnp.asarray(mask)}


def test_prototypes_are_those_of_the_reference(golden, tmp_path, dtype):
  file = golden("gslora", "prototypes")
  module = toy.model(file, dtype, lora=toy.adapted(file, "ffn"))
  ours = METHODS["gs_lora_plus"](
    model=module,
    problem=problems.PROBLEMS["classification"](),
    num_classes=toy.num_classes(file),
    num_stages=1,
  )
  base = toy.tree(file, "params/", tmp_path, module)
  start = toy.with_adapters(base, toy.adapters(file, "params/"), module)
  image = {"image": joined(file, dtype)["image"]}
  features = module.apply({"params": start}, image)["features"]
  toy.close(features, file["out/embedding"], dtype=dtype, float32=OUT)
  total = None
  add = functools.partial(class_means.batch_sums, ours)
  for part in sweep(file, dtype):
    added = jax.jit(add)(start, {}, part)
    total = jax.tree.map(jnp.add, total, added) if total else added
  np.testing.assert_array_equal(total["counts"], file["out/count"])
  np.testing.assert_array_equal(total["counts"] > 0, file["out/valid"])
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
  p, q = (np.exp(file[f"in/f64/hand_{name}"]) for name in ("prototype", "emb"))
  p, q = p / p.sum(), q / q.sum()
  assert float(found) == pytest.approx(np.sum(p * np.log(p / q)), rel=1e-6)
