"""Knowledge Swapping's parts against the reference (golden/swapping)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import swap_toy as toy

from configs import base
from configs import common
from configs import swaps
from libml import trees
from libml.optim import group_lasso
from libml.optim import schedules
from libml.problems import classification
from libml.scenarios import metrics
from models import expansion
from models import lora
from models import pretrained

OUT, GRAD = 2e-5, 2e-5


@functools.cache
def applied(module):
  return jax.jit(lambda p, x: module.apply({"params": p}, {"image": x}))


def near(ours, theirs, tolerance=OUT):
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def forward(golden):
  return golden("swapping", "ks_vit_forward")


@pytest.fixture(scope="module")
def params(forward):
  return toy.tree(forward, "params/", toy.model())


def test_names_of_the_reference_and_official_ones_are_one_tree(
  forward, params, tmp_path
):
  prefix = "params_flax/"
  weights = {
    k.removeprefix(prefix): v for k, v in forward.items() if prefix in k
  }
  np.savez(tmp_path / "official.npz", **weights)
  base_params, adapters = lora.split(params)
  template, _ = lora.split(toy.template(toy.model()))
  loaded = pretrained.load(tmp_path / "official.npz", template, head="keep")
  for name, leaf in trees.flatten(base_params).items():
    assert np.array_equal(trees.flatten(loaded)[name], leaf), name
  count = sum(leaf.size for leaf in jax.tree.leaves(adapters))
  assert count == forward["cfg/trainable"]
  assert toy.model().lora_scale == forward["cfg/scaling"]


def test_forward_with_adapters_apart_merged_and_left_out(forward, params):
  module, image = toy.model(), toy.images(forward["in/image"])
  apart = applied(module)(params, image)["logits"]
  near(apart, forward["out/unmerged/logits"])
  encode = jax.jit(functools.partial(module.apply, method="encode"))
  tokens = encode({"params": params}, image)
  near(tokens, forward["out/unmerged/tokens"])
  merged = lora.merge(params, module.lora_scale)
  near(applied(module)(merged, image)["logits"], forward["out/merged/logits"])
  after = toy.leaves(forward, "after1/", module)
  assert len(after) == 6
  for name, kernel in after.items():
    toy.close(trees.flatten(merged)[name], kernel, OUT, name)
  plain, _ = lora.split(params)
  without = applied(toy.model(adapted=False))(plain, image)["logits"]
  near(without, forward["out/without_lora/logits"])
  assert abs(without - apart).max() > 1e-2


def test_gradients_of_the_adapters(forward, params):
  image = toy.images(forward["in/image"])

  def cost(tree):
    logits = applied(toy.model())(tree, image)["logits"]
    return jnp.sum(logits * forward["in/cotangent"])

  grads = trees.flatten(jax.jit(jax.grad(cost))(params))
  stored = toy.leaves(forward, "grad/", toy.model())
  assert len(stored) == 12
  for name, grad in stored.items():
    toy.close(grads[name], grad, GRAD, name)


@pytest.mark.parametrize("grid", [2, 5])
def test_position_embeddings_of_another_grid(forward, grid):
  found = pretrained.resize_positions(forward[f"in/posembed_grid{grid}"], 17)
  near(found, forward[f"out/posembed_grid{grid}"], 1e-5)


# Case -> goal, and the name of its bound.
CASES = {
  "learn_phase": ("learn", "bound"),
  "forget_phase": ("forget", "bound"),
  "forget_phase_clipped": ("forget", "small_bound"),
}


@pytest.fixture(scope="module")
def losses(golden):
  return golden("swapping", "ks_losses")


@pytest.fixture(scope="module")
def graded(losses):
  """Returns case -> loss, its parts and its gradient."""
  batch = {n: toy.batch(losses, n) for n in ("learn", "forget", "retain")}

  def grade(params):
    found = {}
    for case, (goal, bound) in CASES.items():
      method, _ = toy.build(
        bound=float(losses[f"cfg/{bound}"]),
        retain_weight=float(losses["cfg/beta"]),
        forget_weight=float(losses["cfg/beta"]),
        alpha=float(losses["cfg/alpha"]),
      )
      loss = functools.partial(method.loss, goal=goal)
      grads = jax.value_and_grad(loss, has_aux=True)
      found[case] = grads(params, {}, batch, jax.random.key(0))
    return found

  return jax.jit(grade)(toy.tree(losses, "params/", toy.model()))


@pytest.mark.parametrize("case", CASES)
def test_objectives_and_their_gradients(losses, graded, case):
  goal, bound = CASES[case]
  bound = float(losses[f"cfg/{bound}"])
  (value, parts), grads = graded[case]
  grads = trees.flatten(grads)
  out = {name: losses[f"out/{case}/{name}"] for name in NAMES}
  assert float(value) == pytest.approx(out["total"], rel=OUT)
  weighted = 0.005 * parts["structure"]
  assert float(weighted) == pytest.approx(out["structure_weighted"], rel=OUT)
  for name in ("retain", goal):
    stored = losses[f"out/{name}/cross_entropy"]
    assert float(parts[name]) == pytest.approx(stored, rel=OUT)
    hits = 100 * float(parts[f"train_accuracy_{name}"])
    stored = out["accuracy_retain" if name == "retain" else "accuracy_main"]
    assert hits == pytest.approx(stored, rel=1e-6)
  retained, main = float(parts["retain"]), float(parts[goal])
  if goal == "learn":
    retained = 0.2 * retained
  else:
    main = 0.2 * max(0.0, bound - main)
  assert retained == pytest.approx(out["retain_logged"], rel=OUT)
  assert main == pytest.approx(out["main_logged"], rel=OUT)
  stored = toy.leaves(losses, f"grad/{case}/", toy.model())
  assert len(stored) == 12
  for name, grad in stored.items():
    toy.close(grads[name], grad, GRAD, name)


NAMES = (
  "total",
  "structure_weighted",
  "main_logged",
  "retain_logged",
  "accuracy_main",
  "accuracy_retain",
)


def test_logits_of_each_stream(losses):
  params = toy.tree(losses, "params/", toy.model())
  for name in ("learn", "forget", "retain"):
    image = toy.batch(losses, name)["image"]
    logits = applied(toy.model())(params, image)["logits"]
    near(logits, losses[f"out/{name}/logits"])


def test_group_lasso_and_the_reference_s_other_norms(losses):
  params = toy.tree(losses, "params/", toy.model())
  blocks = group_lasso.of_adapters("block", toy.model().blocks)
  value, grads = jax.value_and_grad(group_lasso.penalty)(params, blocks)
  assert float(value) == pytest.approx(losses["out/group_lasso"], rel=OUT)
  norms = list(group_lasso.norms(params, blocks).values())
  toy.close(np.array(norms), losses["out/group_norms"], OUT)
  for name, grad in toy.leaves(
    losses, "grad/group_lasso/", toy.model()
  ).items():
    toy.close(trees.flatten(grads)[name], grad, GRAD, name)
  matrix = group_lasso.of_adapters("matrix", ())
  for i, wanted in enumerate(losses["out/norm_list"]):
    part = {f"encoderblock_{i}": params["Transformer"][f"encoderblock_{i}"]}
    found = group_lasso.penalty(part, matrix)
    assert float(found) == pytest.approx(float(wanted), rel=OUT)


# Case -> old and new columns.
HEADS = {"expanded200": (100, 100), "expanded5": (7, 5)}


@pytest.mark.parametrize("case", HEADS)
def test_head_with_new_columns(golden, tmp_path, case):
  file = golden("swapping", "ks_head_expansion")
  old, new = HEADS[case]
  params = toy.tree(file, "params/", toy.model(100, adapted=False))
  image = toy.images(file["in/image"])
  module = toy.model(100, adapted=False)
  before = applied(module)(params, image)
  near(before["features"], file["out/features"])
  near(before["logits"], file["out/logits100"])
  head = {k: v[..., :old] for k, v in params["head"].items()}
  known = {f"head/{k}": np.array(v) for k, v in head.items()}
  grown = expansion.joined(known, file[f"in/{case}/new_rows"].T, "head")
  stored = file[f"out/{case}/head.weight"].T
  assert np.array_equal(grown["head/kernel"], stored)
  assert np.array_equal(grown["head/bias"], file[f"out/{case}/head.bias"])
  module = toy.model(old + new, adapted=False)
  whole = {k.removeprefix("head/"): v for k, v in grown.items()}
  after = applied(module)({**params, "head": whole}, image)["logits"]
  near(after, file[f"out/{case}/logits"])
  near(after[:, :old], before["logits"][:, :old])
  # Drawn by ourselves, from a file of the old classes.
  pretrained.save(tmp_path / "known.npz", {**params, "head": head})
  drawn = pretrained.load(
    tmp_path / "known.npz",
    toy.template(module),
    head="keep",
    new=new,
    seed=1,
  )["head"]
  assert np.array_equal(drawn["kernel"][:, :old], head["kernel"])
  assert np.array_equal(drawn["bias"][:old], head["bias"])
  assert not drawn["bias"][old:].any()
  bound = float(file[f"out/{case}/xavier_bound"])
  fresh = drawn["kernel"][:, old:]
  assert 0.97 * bound < abs(fresh).max() <= bound
  assert abs(fresh.std() / (bound / np.sqrt(3)) - 1) < 0.1


def test_harmonic_means_but_for_what_has_none(golden):
  file = golden("swapping", "ks_metrics")
  guarded = 0
  for before, row, drop, wanted in zip(
    file["in/forget_before"],
    file["in/accuracies_forget_retain_learn"],
    file["out/drop_forget"],
    file["out/h_mean"],
    strict=True,
  ):
    forgotten, retained, _ = row
    assert before - forgotten == pytest.approx(drop, rel=1e-6)
    found = metrics.h_mean(retained, before - forgotten)
    if drop < 0:  # theirs is negative: nothing keeps it from that
      guarded += 1
      assert wanted < 0 and found == 0
    else:
      assert found == pytest.approx(wanted, rel=1e-6)
  assert guarded == 2


def test_accuracy(golden):
  file = golden("swapping", "ks_metrics")
  label = jnp.asarray(file["in/labels"], jnp.int32)
  outputs = {"logits": jnp.asarray(file["in/logits"])}
  batch = {
    "label": label,
    "mask": jnp.ones(len(label), bool),
    "allowed": jnp.ones(12, bool),
  }
  problem = classification.Classification()
  found = problem.report([problem.measure(outputs, batch)])["accuracy"]
  assert 100 * found == pytest.approx(float(file["out/accuracy"]), rel=1e-6)
  first = {"logits": outputs["logits"][:10]}
  _, told = problem.loss(first, {"label": label[:10]})
  stored = float(file["out/train_accuracy_first10"])
  assert 100 * float(told["train_accuracy"]) == pytest.approx(stored, rel=1e-6)


@pytest.mark.parametrize("epochs", [5, 10, 3, 1])
def test_rates_start_again_in_the_second_phase(golden, epochs):
  stored = golden("swapping", "ks_metrics")[f"out/lr_two_phases_epochs{epochs}"]
  config = base.get_config()
  config.method = common.method("swapping")
  swaps.optimizer(config, lr=1e-2)
  used = config.optimizer.lora
  rate = schedules.build(
    used.schedule,
    lr=used.lr,
    epochs=epochs,
    warmup_epochs=used.warmup_epochs,
    min_lr=used.min_lr,
  )
  # A stage's clock starts at 0; after each of 4 steps it shows a quarter more.
  clock = np.arange(1, 4 * epochs + 1, dtype=np.float32) / 4
  found = np.concatenate([rate(clock)] * 2)
  np.testing.assert_allclose(found, np.repeat(stored, 4), rtol=1e-6)
