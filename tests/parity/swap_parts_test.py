"""Knowledge Swapping's parts against the reference (golden/swapping)."""

import functools

import figures
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

FIGURES = {
  "swapping/ks_vit_forward": {},
  "swapping/ks_losses": {},
  "swapping/ks_head_expansion": {},
  "swapping/ks_metrics": {},
}
OUT, GRAD = 2e-5, 2e-5


@functools.cache
def applied(module):
  return jax.jit(lambda p, x: module.apply({"params": p}, {"image": x}))


def same(ours, theirs):
  """Compares values to OUT, absolute and relative."""
  theirs = float(theirs)
  assert float(ours) == pytest.approx(
    theirs, rel=0, abs=OUT * min(1.0, abs(theirs))
  )


def near(ours, theirs, tolerance=OUT):
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def forward(golden):
  return golden("swapping", "ks_vit_forward")


@pytest.fixture(scope="module")
def params(forward):
  return toy.tree(forward, "params/", toy.model(forward))


def test_names_of_the_reference_and_official_ones_are_one_tree(
  forward, params, tmp_path
):
  np.savez(tmp_path / "official.npz", **forward.part("params_flax/"))
  base_params, adapters = lora.split(params)
  template, _ = lora.split(toy.template(toy.model(forward)))
  loaded = pretrained.load(tmp_path / "official.npz", template, head="keep")
  for name, leaf in trees.flatten(base_params).items():
    assert np.array_equal(trees.flatten(loaded)[name], leaf), name
  count = sum(leaf.size for leaf in jax.tree.leaves(adapters))
  assert count == forward["cfg/trainable"]
  assert toy.model(forward).lora_scale == forward["cfg/scaling"]


def test_forward_with_adapters_apart_merged_and_left_out(forward, params):
  module, image = toy.model(forward), toy.images(forward["in/image"])
  apart = applied(module)(params, image)["logits"]
  near(apart, forward["out/unmerged/logits"])
  encode = jax.jit(functools.partial(module.apply, method="encode"))
  tokens = encode({"params": params}, image)
  near(tokens, forward["out/unmerged/tokens"])
  merged = lora.merge(params, module.lora_scale)
  near(applied(module)(merged, image)["logits"], forward["out/merged/logits"])
  after = toy.leaves(forward, "after1/", module)
  kernels = {n.rsplit("/", 1)[0] for n in trees.flatten(lora.split(params)[1])}
  assert after.keys() == {f"{name}/kernel" for name in kernels}
  for name, kernel in after.items():
    toy.close(trees.flatten(merged)[name], kernel, OUT, name)
  plain, _ = lora.split(params)
  without = applied(toy.model(forward, adapted=False))(plain, image)["logits"]
  near(without, forward["out/without_lora/logits"])
  assert abs(without - apart).max() > 1e-2


def test_gradients_of_the_adapters(forward, params):
  module, image = toy.model(forward), toy.images(forward["in/image"])

  def cost(tree):
    logits = applied(module)(tree, image)["logits"]
    return jnp.sum(logits * forward["in/cotangent"])

  grads = trees.flatten(jax.jit(jax.grad(cost))(params))
  stored = toy.leaves(forward, "grad/", module)
  assert toy.is_adapted(module, stored)
  for name, grad in stored.items():
    toy.close(grads[name], grad, GRAD, name)


@pytest.mark.parametrize(
  "grid", figures.cases("swapping/ks_vit_forward", r"in/posembed_(.*)")
)
def test_position_embeddings_of_another_grid(forward, grid):
  tokens = 1 + toy.model(forward).num_patches
  found = pretrained.resize_positions(forward[f"in/posembed_{grid}"], tokens)
  near(found, forward[f"out/posembed_{grid}"], 1e-5)


CASES = figures.cases("swapping/ks_losses", r"out/([^/]+)/total")


def meaning(case):
  """Returns a case's goal, and the name of its bound."""
  goal, _, kind = case.partition("_phase")
  assert goal in ("learn", "forget") and kind in ("", "_clipped"), case
  return goal, "small_bound" if kind else "bound"


@pytest.fixture(scope="module")
def losses(golden):
  return golden("swapping", "ks_losses")


@pytest.fixture(scope="module")
def graded(losses):
  """Returns case -> loss, its parts and its gradient."""
  batch = {n: toy.batch(losses, n) for n in ("learn", "forget", "retain")}

  def grade(params):
    found = {}
    for case in CASES:
      goal, bound = meaning(case)
      method, _ = toy.build(losses, bound=bound)
      loss = functools.partial(method.loss, goal=goal)
      grads = jax.value_and_grad(loss, has_aux=True)
      found[case] = grads(params, {}, batch, jax.random.key(0))
    return found

  return jax.jit(grade)(toy.tree(losses, "params/", toy.model(losses)))


@pytest.mark.parametrize("case", CASES)
def test_objectives_and_their_gradients(losses, graded, case):
  goal, bound = meaning(case)
  bound, beta = float(losses[f"cfg/{bound}"]), float(losses["cfg/beta"])
  (value, parts), grads = graded[case]
  grads = trees.flatten(grads)
  out = {name: losses[f"out/{case}/{name}"] for name in NAMES}
  same(value, out["total"])
  weighted = float(losses["cfg/alpha"]) * parts["structure"]
  same(weighted, out["structure_weighted"])
  for name in ("retain", goal):
    same(parts[name], losses[f"out/{name}/cross_entropy"])
    hits = 100 * float(parts[f"train_accuracy_{name}"])
    stored = out["accuracy_retain" if name == "retain" else "accuracy_main"]
    assert hits == pytest.approx(stored, rel=1e-6)
  retained, main = float(parts["retain"]), float(parts[goal])
  if goal == "learn":
    retained = beta * retained
  else:
    main = beta * max(0.0, bound - main)
  same(retained, out["retain_logged"])
  same(main, out["main_logged"])
  module = toy.model(losses)
  stored = toy.leaves(losses, f"grad/{case}/", module)
  assert toy.is_adapted(module, stored)
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
  module = toy.model(losses)
  params = toy.tree(losses, "params/", module)
  for name in ("learn", "forget", "retain"):
    image = toy.batch(losses, name)["image"]
    logits = applied(module)(params, image)["logits"]
    near(logits, losses[f"out/{name}/logits"])


def test_group_lasso_and_the_reference_s_other_norms(losses):
  module = toy.model(losses)
  params = toy.tree(losses, "params/", module)
  blocks = group_lasso.of_adapters("block", module.blocks)
  value, grads = jax.value_and_grad(group_lasso.penalty)(params, blocks)
  same(value, losses["out/group_lasso"])
  norms = list(group_lasso.norms(params, blocks).values())
  toy.close(np.array(norms), losses["out/group_norms"], OUT)
  near(norms, losses["out/group_norms"])
  stored = toy.leaves(losses, "grad/group_lasso/", module)
  assert toy.is_adapted(module, stored)
  for name, grad in stored.items():
    toy.close(trees.flatten(grads)[name], grad, GRAD, name)
  matrix = group_lasso.of_adapters("matrix", ())
  assert len(losses["out/norm_list"]) == module.depth
  for i, wanted in enumerate(losses["out/norm_list"]):
    part = {f"encoderblock_{i}": params["Transformer"][f"encoderblock_{i}"]}
    same(group_lasso.penalty(part, matrix), wanted)


HEADS = figures.cases("swapping/ks_head_expansion", r"in/(.+)/new_rows")


@pytest.mark.parametrize("case", HEADS)
def test_head_with_new_columns(golden, case):
  file = golden("swapping", "ks_head_expansion")
  rows = file[f"in/{case}/new_rows"]
  stored = file[f"out/{case}/head.weight"].T
  old = stored.shape[-1] - len(rows)
  module = toy.model(file, adapted=False)
  params = toy.tree(file, "params/", module)
  image = toy.images(file["in/image"])
  before = applied(module)(params, image)
  near(before["features"], file["out/features"])
  ((_, logits),) = file.part("out/logits").items()
  near(before["logits"], logits)
  known = {f"head/{k}": np.array(v[..., :old]) for k, v in head(params)}
  grown = expansion.joined(known, rows.T, "head")
  assert np.array_equal(grown["head/kernel"], stored)
  assert np.array_equal(grown["head/bias"], file[f"out/{case}/head.bias"])
  whole = {k.removeprefix("head/"): v for k, v in grown.items()}
  module = toy.model(file, len(whole["bias"]), adapted=False)
  after = applied(module)({**params, "head": whole}, image)["logits"]
  near(after, file[f"out/{case}/logits"])
  near(after[:, :old], before["logits"][:, :old])


def head(params):
  return params["head"].items()


@pytest.mark.parametrize("case", HEADS)
def test_new_columns_drawn_by_ourselves(golden, tmp_path, case):
  file = golden("swapping", "ks_head_expansion")
  count = len(file[f"in/{case}/new_rows"])
  old = len(file[f"out/{case}/head.bias"]) - count
  params = toy.tree(file, "params/", toy.model(file, adapted=False))
  known = {k: v[..., :old] for k, v in head(params)}
  # A file of the old classes.
  pretrained.save(tmp_path / "known.npz", {**params, "head": known})
  template = toy.template(toy.model(file, old + count, adapted=False))
  load = functools.partial(
    pretrained.load, tmp_path / "known.npz", template, head="keep", new=count
  )
  bound = float(file[f"out/{case}/xavier_bound"])
  fresh = []
  while len(fresh) < 10 or len(fresh) * fresh[0].size < 2000:
    drawn = load(seed=1 + len(fresh))["head"]
    assert np.array_equal(drawn["kernel"][:, :old], known["kernel"])
    assert np.array_equal(drawn["bias"][:old], known["bias"])
    assert not drawn["bias"][old:].any()
    fresh.append(drawn["kernel"][:, old:])
  fresh = np.concatenate(fresh)
  assert 0.99 * bound < abs(fresh).max() <= bound
  assert abs(fresh.std() / (bound / np.sqrt(3)) - 1) < 0.1


def test_harmonic_means_but_for_what_has_none(golden):
  file = golden("swapping", "ks_metrics")
  rows = file["in/accuracies_forget_retain_learn"]
  for before, row, drop, wanted in zip(
    file["in/forget_before"],
    rows,
    file["out/drop_forget"],
    file["out/h_mean"],
    strict=True,
  ):
    forgotten, retained, _ = row
    assert before - forgotten == pytest.approx(drop, rel=1e-12, abs=1e-12)
    found = metrics.h_mean(retained, before - forgotten)
    if drop < 0:  # theirs is negative: nothing keeps it from that
      assert found == 0
      told = 2 * retained * drop / (retained + drop)
      assert wanted < 0 and wanted == pytest.approx(told, rel=1e-6)
    else:
      assert found == pytest.approx(wanted, rel=1e-6)
  assert (file["out/drop_forget"] < 0).any()


def test_accuracy(golden):
  file = golden("swapping", "ks_metrics")
  label = jnp.asarray(file["in/labels"], jnp.int32)
  outputs = {"logits": jnp.asarray(file["in/logits"])}
  batch = {
    "label": label,
    "mask": jnp.ones(len(label), bool),
    "allowed": jnp.ones(outputs["logits"].shape[-1], bool),
  }
  problem = classification.Classification()
  found = problem.summarize([problem.measure(outputs, batch)])["accuracy"]
  assert 100 * found == pytest.approx(float(file["out/accuracy"]), rel=1e-6)
  ((count, stored),) = file.part("out/train_accuracy_first").items()
  first = {"logits": outputs["logits"][: int(count)]}
  _, told = problem.loss(first, {"label": label[: int(count)]})
  assert 100 * float(told["train_accuracy"]) == pytest.approx(
    float(stored), rel=1e-6
  )


@pytest.mark.parametrize(
  "epochs",
  figures.cases("swapping/ks_metrics", r"out/lr_two_phases_epochs(\d+)"),
)
def test_rates_start_again_in_the_second_phase(golden, epochs):
  stored = golden("swapping", "ks_metrics")[f"out/lr_two_phases_epochs{epochs}"]
  epochs = int(epochs)
  config = base.get_config()
  config.method = common.method("swapping")
  swaps.optimizer(config, lr=float(stored[0]))
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
