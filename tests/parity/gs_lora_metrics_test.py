"""Accuracy with a margin, norms of edits: figures of the released code."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from libml.problems import classification
from libml.scenarios import metrics
from models import lora


@pytest.mark.parametrize(
  ("kind", "margin"), [("margin", 0.35), ("no_margin", 0)]
)
def test_accuracy_with_and_without_the_margin(golden, kind, margin):
  stored = golden("gslora", "metrics")
  label = jnp.asarray(stored["in/label"])
  cosine = jnp.asarray(stored["in/cosine"])
  logits = 64 * (cosine - margin * jax.nn.one_hot(label, cosine.shape[1]))
  np.testing.assert_array_equal(
    jnp.argmax(logits, axis=1), stored[f"out/predicted_{kind}"]
  )
  problem = classification.Classification()
  batch = {
    "label": label,
    "mask": jnp.ones(len(label), bool),
    "allowed": jnp.ones(cosine.shape[1], bool),
  }
  found = problem.report([problem.measure({"logits": logits}, batch)])
  wanted = float(stored[f"out/accuracy_{kind}"])
  assert 100 * found["accuracy"] == pytest.approx(wanted, rel=1e-6)


def test_norm_of_what_each_layer_s_adapter_adds(golden):
  stored = golden("gslora", "metrics")
  rank = json.loads(str(stored["meta"]))["model"]["rank"]
  for block, wanted in enumerate(stored["out/ffn/delta_norm"]):
    for layer, norm in zip(("net.0", "net.3"), wanted, strict=True):
      name = f"params/ffn/transformer.layers.{block}.1.fn.fn.{layer}"
      a = jnp.asarray(stored[f"{name}.lora_A"]).T
      b = jnp.asarray(stored[f"{name}.lora_B"]).T
      kernel = jnp.zeros((a.shape[0], b.shape[1]))
      layer_params = {"d": {"lora_a": a, "lora_b": b, "kernel": kernel}}
      (change,) = jax.tree.leaves(lora.deltas(layer_params, 1 / rank))
      found = float(jnp.linalg.norm(change))
      assert found == pytest.approx(norm, rel=1e-6, abs=1e-12)


def test_incremental_figures(golden):
  stored = golden("gslora", "metrics")
  matrix = stored["in/f64/acc_matrix"]
  columns = ("avg_acc", "forgetting", "backward", "learning_acc")
  for task, wanted in enumerate(stored["out/incremental"]):
    found = metrics.class_incremental(matrix, np.ones(len(matrix)), task)
    for name, value in zip(columns, wanted, strict=True):
      assert found.get(name, 0.0) == pytest.approx(value, rel=1e-12), name
