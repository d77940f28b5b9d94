"""Steps confined to the weights that matter: SalUn, and any other baseline."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from baselines_toy import tiny
from walks import watch

import main
from libml import optim
from libml import trees
from libml.optim import transforms
from methods.parts import saliency

RUNS = {"salun": 0.5, "ewc": 0.3}


def test_example_of_the_docstring_runs():
  found = doctest.testmod(transforms)
  assert found.attempted > 5 and found.failed == 0


# The transform.


@pytest.mark.parametrize(
  "options",
  [{"weight_decay": 0.5}, {"l2": 0.5}, {"normalize_columns": True}],
)
def test_weights_outside_the_mask_keep_every_bit(options):
  rng = np.random.default_rng(0)
  params = {n: jnp.float32(rng.normal(size=(6, 4))) for n in ("a", "b")}
  masks = {"a": jnp.asarray(rng.random((6, 4)) < 0.4)}
  tx = optim.group_transform(
    name="adam",
    lr=0.1,
    epochs=1,
    transforms=(transforms.keep_salient(),),
    **options,
  )
  state, now = tx.init(params), params
  for _ in range(3):
    grads = {n: jnp.float32(rng.normal(size=(6, 4))) for n in params}
    updates, state = tx.update(grads, state, now, epoch=0.0, salient=masks)
    now = optax.apply_updates(now, updates)
  still = np.array(now["a"] == params["a"])
  assert np.array_equal(still, ~masks["a"])
  assert np.all(now["b"] != params["b"]), "no mask lets everything pass"


def test_masks_that_change_are_compiled_once():
  tx, params = transforms.keep_salient(), {"a": jnp.ones(4)}
  traced = []

  @jax.jit
  def step(masks):
    traced.append(masks)
    return tx.update(params, tx.init(params), params, salient=masks)[0]["a"]

  for row in np.eye(4, dtype=bool):
    assert np.array_equal(step({"a": row}), row)
  assert len(traced) == 1


def test_without_masks_an_update_passes():
  tx, update = transforms.keep_salient(), {"a": jnp.ones(3)}
  found, _ = tx.update(update, tx.init(update))
  assert np.array_equal(found["a"], update["a"])


# Which weights matter.


@pytest.mark.parametrize("share", [0.01, 0.25, 0.3, 0.5, 0.99, 1.0])
def test_share_is_over_all_leaves(share):
  rng = np.random.default_rng(1)
  leaves = {
    "large": jnp.float32(5 * rng.normal(size=(8, 5))),
    "small": jnp.float32(rng.normal(size=60)),
  }
  found = saliency.largest(leaves, share)
  assert sum(int(m.sum()) for m in found.values()) == round(100 * share)
  inside, outside = (
    np.concatenate([abs(leaves[n][m == flag]) for n, m in found.items()])
    for flag in (True, False)
  )
  assert share == 1 or inside.min() > outside.max()
  if share == 0.3:
    assert found["large"].mean() > found["small"].mean()


def test_at_least_one_weight_is_left_and_equals_count_too():
  assert saliency.largest({"a": jnp.arange(3.0)}, 1e-6)["a"].tolist() == [
    False,
    False,
    True,
  ]
  assert saliency.largest({"a": jnp.ones(4)}, 0.5)["a"].all()


# In a run.


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
  """Returns a run of two requests in which weights decay, and its share."""
  share = RUNS[request.param]
  config = tiny(request.param, method__saliency=share, scenario__num_requests=2)
  assert config.optimizer.backbone.weight_decay == 0.05
  seen = watch(config, tmp_path_factory.mktemp(request.param))
  seen.share = share
  return seen


def masks(host):
  prefix = "memory/salient/"
  return {
    f"params/{name.removeprefix(prefix)}": leaf
    for name, leaf in host.items()
    if name.startswith(prefix)
  }


def test_share_of_the_trained_weights_is_right(run):
  trained = trees.flatten(run.run.optimizer.groups.trainable(run.state.params))
  trained = {f"params/{name}" for name, on in trained.items() if on}
  for host in run.begun:
    found = masks(host)
    assert found.keys() == trained
    count = sum(int(mask.sum()) for mask in found.values())
    size = sum(mask.size for mask in found.values())
    assert abs(count - run.share * size) <= 1
  first, second = map(masks, run.begun)
  assert any(not np.array_equal(first[n], second[n]) for n in first)


def test_weights_outside_the_mask_are_not_touched(run):
  for before, after in zip(run.begun, run.trained, strict=True):
    moved = total = 0
    for name, mask in masks(before).items():
      same = before[name] == after[name]
      assert same[~mask].all(), name
      moved, total = moved + int((~same).sum()), total + int(mask.sum())
    assert moved > 0.9 * total


def test_salient_weights_are_those_of_the_largest_gradient(run):
  """The gradient of the cross entropy to forget, by hand."""
  method, stage = run.run.method, run.run.scenario.stages[0]
  data, params = run.run.data(stage), trees.flatten(run.state.params)
  first = {name: jnp.asarray(run.begun[0][f"params/{name}"]) for name in params}
  batches = [b for b in data.sweep(data.train["forget"])]
  image, label, mask = (
    jnp.concatenate([b[key] for b in batches])
    for key in ("image", "label", "mask")
  )

  @jax.jit
  @jax.grad
  def gradient(leaves):
    tree = trees.update(run.state.params, leaves)
    logits = method.apply(tree, {"image": image, "label": label})["logits"]
    rows = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return jnp.sum(jnp.where(mask, rows, 0.0))

  grads, found = gradient(first), masks(run.begun[0])
  sizes = {n: abs(np.array(grads[n.removeprefix("params/")])) for n in found}
  edge = min(sizes[n][m].min() for n, m in found.items() if m.any())
  for name, leaf in found.items():
    clear = abs(sizes[name] - edge) > 1e-3 * edge
    assert np.array_equal((sizes[name] > edge)[clear], leaf[clear]), name


def test_one_step_serves_both_requests(run):
  made = run.record["compiled_steps"]
  assert made["train/train"] == made["largest"] == made["salience"] == 1


CASES = {
  "nothing": (
    "salun",
    {"method__saliency": 0.0},
    r"saliency=0.0 must be above",
  ),
  "more than all": ("ewc", {"method__saliency": 1.5}, r"1.5 must be .*most 1"),
  "a method that trains nothing": (
    "ssd",
    {"method__saliency": 0.5},
    r"saliency=0.5 selects among .*, but the optimizer trains none; set it to",
  ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_refused(case, tmp_path):
  name, changes, message = CASES[case]
  with pytest.raises(ValueError, match=message):
    main.execute(tiny(name, **changes), tmp_path)
