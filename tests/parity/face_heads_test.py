"""Heads for faces against the reference's numbers (golden/gslora)."""

import math

import face_toy as toy
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models import heads

FIGURES = {"gslora/heads": {}}
ALLOWED = 3e-5
# Case of the file -> row of HEADS.
CASES = {
  "cosface": "cosface",
  "arcface": "arcface",
  "arcface_easy": "arcface_easy",
  "softmax": "softmax",
  "sface_vit": "sface",
  "sface_vits": "sface_sliding",
}


def build(file, case, dtype, **changes):
  """Returns a case's head and its parameters."""
  numbers = toy.meta(file)
  kernel = jnp.asarray(file["params/weight"].T, dtype)
  options, params = {}, {"kernel": kernel}
  if case == "softmax":
    params["bias"] = jnp.asarray(file["params/softmax.bias"], dtype)
  else:
    options["scale"] = numbers["s"]
  if "face" in case and not case.startswith("sface"):
    options["margin"] = numbers[f"{case.removesuffix('_easy')}_m"]
  if case.startswith("sface"):
    inner, outer = numbers[f"{case}_ab"]
    options.update(slope=numbers["sface_k"], inner=inner, outer=outer)
  options.update(num_classes=kernel.shape[1], param_dtype=dtype, **changes)
  return heads.build(CASES[case], **options), params


@pytest.mark.parametrize("dtype", toy.TYPES)
@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients(golden, dtype, case):
  file = golden("gslora", "heads")
  with toy.precision(dtype):
    head, params = build(file, case, dtype)
    label = jnp.asarray(file["in/label"], jnp.int32)

    def loss(params, features):
      outputs = head.apply({"params": params}, features, label, train=True)
      losses = outputs.get("loss")
      if losses is None:
        losses = optax.softmax_cross_entropy_with_integer_labels(
          outputs["logits"], label
        )
      return losses.mean(), outputs

    features = jnp.asarray(file["in/emb"], dtype)
    (value, outputs), grads = jax.value_and_grad(
      loss, argnums=(0, 1), has_aux=True
    )(params, features)
    of_params, of_features = grads
    compared = {
      f"out/{case}/loss": value,
      f"out/{case}/logits": outputs["logits"],
      f"grad/{case}/emb": of_features,
      f"grad/{case}/weight": of_params["kernel"].T,
    }
    if case == "softmax":
      compared["grad/softmax/bias"] = of_params["bias"]
    for name, ours in compared.items():
      toy.close(ours, file[name], dtype=dtype, float32=ALLOWED, name=name)


@pytest.mark.parametrize("dtype", toy.TYPES)
@pytest.mark.parametrize("case", [c for c in CASES if c.startswith("sface")])
def test_parts_of_sface(golden, dtype, case):
  file = golden("gslora", "heads")
  label = np.asarray(file["in/label"])
  with toy.precision(dtype):
    features = jnp.asarray(file["in/emb"], dtype)

    def outputs(**angles):
      head, params = build(file, case, dtype)
      head = head.clone(**angles)
      return head.apply({"params": params}, features, label)

    cosine = outputs()["logits"] / toy.meta(file)["s"]
    true = jax.nn.one_hot(label, cosine.shape[1], dtype=bool)
    found = {
      # An angle beyond all takes one of the two sums out.
      "intra": outputs(outer=-math.inf)["loss"].mean(),
      "inter": outputs(inner=math.inf)["loss"].mean(),
      "cos_target": jnp.where(true, cosine, 0).sum(axis=1).mean(),
      # The authors divide by all classes.
      "cos_other": jnp.where(true, 0, cosine).mean(),
    }
    for name, ours in found.items():
      theirs = file[f"out/{case}/{name}"]
      toy.close(ours, theirs, dtype=dtype, float32=ALLOWED, name=name)
