"""Heads for faces against the reference's numbers (golden/gslora)."""

import face_toy as toy
import jax
import jax.numpy as jnp
import optax
import pytest

from models import heads

# Case of the file -> row of HEADS.
CASES = {
  "cosface": "cosface",
  "arcface": "arcface",
  "arcface_easy": "arcface_easy",
  "softmax": "softmax",
  "sface_vit": "sface",
  "sface_vits": "sface_sliding",
}


@pytest.mark.parametrize("dtype", toy.TYPES)
@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients(golden, dtype, case):
  file = golden("gslora", "heads")
  with toy.precision(dtype):
    head = heads.build(CASES[case], num_classes=10, param_dtype=dtype)
    params = {"kernel": jnp.asarray(file["params/weight"].T, dtype)}
    if case == "softmax":
      params["bias"] = jnp.asarray(file["params/softmax.bias"], dtype)
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
      toy.close(ours, file[name], dtype=dtype, float32=3e-5, name=name)
