"""Accuracies, H, norms and zeros of edits: figures of the released code."""

import math
import re

import face_toy as toy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from libml import scenarios
from libml.optim import group_lasso
from libml.problems import classification
from libml.scenarios import metrics
from models import heads
from models import lora

FIGURES = {
  "gslora/metrics": {
    "out/*/*/reference_sum_of_l1": "the sum of magnitudes is no figure of ours",
  }
}
STORED = toy.stored("metrics")
# Case -> (placement, grouping).
GROUPINGS = {
  found[0]: found.groups()
  for name in STORED
  if (found := re.match(r"out/(\w+)/(\w+)/group_norm", name))
}
EXACT = dict(rtol=1e-12, atol=0)


@pytest.fixture(scope="module")
def file(golden):
  return golden("gslora", "metrics")


@pytest.mark.parametrize("kind", ["margin", "no_margin"])
def test_accuracy_with_and_without_the_margin(file, kind):
  label = jnp.asarray(file["in/label"])
  cosine = jnp.asarray(file["in/cosine"])
  head = heads.CosFace(num_classes=cosine.shape[1])
  true = jax.nn.one_hot(label, cosine.shape[1], dtype=bool)
  logits = head.scale * cosine
  if kind == "margin":
    logits = jnp.where(true, head.scale * head.penalize(cosine), logits)
  np.testing.assert_array_equal(
    jnp.argmax(logits, axis=1), file[f"out/predicted_{kind}"]
  )
  problem = classification.Classification()
  batch = {
    "label": label,
    "mask": jnp.ones(len(label), bool),
    "allowed": jnp.ones(cosine.shape[1], bool),
  }
  found = problem.summarize([problem.measure({"logits": logits}, batch)])
  wanted = float(file[f"out/accuracy_{kind}"])
  assert 100 * found["accuracy"] == pytest.approx(wanted, rel=1e-12)


def test_h_mean_is_the_reference_s_where_that_is_right(file):
  figures = zip(
    file["in/f64/before_after_remain"],
    file["out/drop"],
    file["out/h"],
    file["out/h_reference"],
    file["out/h_reference_single"],
    strict=True,
  )
  for (before, after, retain), drop, h, of_loop, of_single in figures:
    assert before - after == pytest.approx(drop, abs=1e-12)
    found = metrics.h_mean(retain, before - after)
    assert found == pytest.approx(h, rel=1e-12)
    # Theirs is 0 / 0, below 0 or above it again where nothing was forgotten.
    if min(drop, retain) > 0:
      assert found == pytest.approx(of_single, rel=1e-12)
      total = drop + retain
      assert found * total / (total + 1e-8) == pytest.approx(of_loop, rel=1e-12)
    else:
      assert found == 0


def test_the_run_of_the_reference_is_summed_up_alike(file):
  order, count = file["in/run/order"], file["in/run/count"]
  run, rows = toy.meta(file)["run"], file["out/run"]
  first, size = run["first"], run["per_task"]
  # From the end of the order to its start.
  ends = [first + size - i * size for i in range(len(rows))]
  parts = {
    f"request_{i}": order[end - size : end] for i, end in enumerate(ends)
  }
  parts["kept"] = order[: ends[-1] - size]
  table = []
  for hits in file["in/run/hits"]:
    figures = {
      name: {"accuracy": hits[ids].sum() / n, "count": int(n)}
      for name, ids in parts.items()
      for n in [count[ids].sum()]
    }
    table.append({name: {"": f} for name, f in figures.items()})
  for task, row in enumerate(rows):
    wanted = dict(zip(run["columns"], row / 100, strict=True))
    found = scenarios.summarize_forgetting(table[: task + 2], "", "accuracy")
    previous = table[task][f"request_{task}"][""]["accuracy"]
    ours = {
      "acc_forget_pretrained": found["acc_forget"] + found["drop_forget"],
      "acc_forget_previous": previous,
      "acc_forget_after": found["acc_forget"],
      "acc_retain": found["acc_retain"],
      "acc_old": found.get("acc_old", math.nan),  # nothing is old at first
      "drop_pretrained": found["drop_forget"],
      "h_pretrained": found["h_mean"],
      "drop_previous": previous - found["acc_forget"],
      "h_previous": found["h_mean_previous"],
    }
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
      assert ours[name] == pytest.approx(value, rel=1e-12, nan_ok=True), name


def test_incremental_figures(file):
  matrix = file["in/f64/acc_matrix"]
  columns = ("avg_acc", "forgetting", "backward", "learning_acc")
  for task, wanted in enumerate(file["out/incremental"]):
    found = metrics.class_incremental(matrix, np.ones(len(matrix)), task)
    for name, value in zip(columns, wanted, strict=True):
      assert found.get(name, 0.0) == pytest.approx(value, rel=1e-12), name


def test_norm_of_what_each_layer_s_adapter_adds(file):
  rank = toy.meta(file)["model"]["rank"]
  with toy.precision("float64"):
    for block, wanted in enumerate(file["out/ffn/delta_norm"]):
      for layer, norm in zip(("net.0", "net.3"), wanted, strict=True):
        name = f"params/ffn/transformer.layers.{block}.1.fn.fn.{layer}"
        a, b = (
          jnp.asarray(file[f"{name}.lora_{matrix}"].T, "float64")
          for matrix in "AB"
        )
        kernel = jnp.zeros((a.shape[0], b.shape[1]))
        layer_params = {"d": {"lora_a": a, "lora_b": b, "kernel": kernel}}
        (change,) = jax.tree.leaves(lora.deltas(layer_params, 1 / rank))
        np.testing.assert_allclose(jnp.linalg.norm(change), norm, **EXACT)


LAYERS = {
  "ffn": ("1", {"net.0": "MlpBlock_0/Dense_0", "net.3": "MlpBlock_0/Dense_1"}),
  "attention": ("0", {"to_qkv": "MultiHeadDotProductAttention_0/qkv"}),
}


def adapters(file, placement):
  """Returns the file's adapters under our names, in the file's order."""
  part, layers = LAYERS[placement]
  found = {}
  for theirs, ours in layers.items():
    for matrix in "AB":
      for i in range(toy.meta(file)["model"]["depth"]):
        name = f"transformer.layers.{i}.{part}.fn.fn.{theirs}.lora_{matrix}"
        leaf = f"encoderblock_{i}/{ours}/lora_{matrix.lower()}"
        value = jnp.asarray(file[f"params/{placement}/{name}"], "float64")
        found[f"Transformer/{leaf}"] = value
  return found


@pytest.mark.parametrize("case", GROUPINGS)
def test_norms_and_zeros_of_groups(file, case):
  placement, grouping = GROUPINGS[case]
  out = f"out/{placement}/{grouping}"
  depth = toy.meta(file)["model"]["depth"]
  blocks = [f"Transformer/encoderblock_{i}" for i in range(depth)]
  groups, matrix = (
    group_lasso.of_adapters(name, blocks) for name in (grouping, "matrix")
  )
  with toy.precision("float64"):
    # A dict under jax is in the order of its keys.
    leaves = list(adapters(file, placement).items())
    tree = traverse_util.unflatten_dict(dict(leaves), sep="/")
    order = list(dict.fromkeys(groups(name) for name, _ in leaves))
    norms = group_lasso.norms(tree, groups)
    zeros = group_lasso.zeros(tree, groups)
    # What the authors log is the sum over the matrices of a group.
    logged = [
      group_lasso.penalty(
        {name: leaf for name, leaf in leaves if groups(name) == group}, matrix
      )
      for group in order
    ]
  assert norms.keys() == zeros.keys() == set(order)
  norm = np.array([norms[group] for group in order])
  zero = np.array([zeros[group] for group in order])
  np.testing.assert_allclose(norm, file[f"{out}/group_norm"], **EXACT)
  np.testing.assert_array_equal(zero, file[f"{out}/exactly_zero"])
  assert zero.mean() == file[f"{out}/zero_ratio"]
  wanted = file[f"{out}/reference_sum_of_norms"]
  np.testing.assert_allclose(logged, wanted, **EXACT)
  if f"{out}/near_zero" in file:
    rank = toy.meta(file)["model"]["rank"]
    near = norm < 1e-3 * math.sqrt(2 * rank / 3)
    np.testing.assert_array_equal(near, file[f"{out}/near_zero"])
    assert near.mean() == file[f"{out}/near_zero_ratio"]
