"""The Face Transformer against the reference's numbers (golden/gslora)."""

import math

import face_toy as toy
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from libml import trees
from models import encoder
from models import layers
from models import lora

FIGURES = {
  "gslora/face_vit_forward": {},
  "gslora/face_vits_forward": {},
  "gslora/lora_forward_merge": {},
}
OUT, GRAD, ADAPTED = 5e-6, 2e-5, 2e-5
SLOPE = math.sqrt(50)  # of the draw of A between requests
# Theirs -> ours.
LEAVES = {
  "weight": "kernel",
  "bias": "bias",
  "lora_A": "lora_a",
  "lora_B": "lora_b",
}


def mean_loss(module, params, batch):
  outputs = jax.jit(module.apply)({"params": params}, batch)
  loss = optax.softmax_cross_entropy_with_integer_labels(
    outputs["logits"], batch["label"]
  )
  return loss.mean(), outputs


@pytest.mark.parametrize("dtype", toy.TYPES)
def test_forward_and_gradient(golden, tmp_path, dtype):
  file = golden("gslora", "face_vit_forward")
  with toy.precision(dtype):
    module = toy.model(file, dtype)
    params = toy.tree(file, "params/", tmp_path, module)
    batch = toy.inputs(file, dtype)

    def close(ours, name):
      theirs = file[f"out/{name}"]
      toy.close(ours, theirs, dtype=dtype, float32=OUT, name=name)

    (loss, outputs), grads = jax.jit(
      jax.value_and_grad(lambda p: mean_loss(module, p, batch), has_aux=True)
    )(params)
    close(loss, "ce")
    close(outputs["features"], "embedding")
    close(outputs["logits"], "logits")
    close(outputs["readings"]["_no_margin"], "logits_no_margin")
    unlabelled = jax.jit(module.apply)(
      {"params": params}, {"image": batch["image"]}
    )
    close(unlabelled["logits"], "logits_no_margin")

    _, seen = module.apply(
      {"params": params},
      batch["image"],
      method="encode",
      capture_intermediates=True,
      mutable=["intermediates"],
    )
    seen = seen["intermediates"]["Transformer"]
    tokens = seen["posembed_input"]["__call__"][0]
    close(tokens, "tokens")
    block = seen["encoderblock_0"]
    attention = block["MultiHeadDotProductAttention_0"]["__call__"][0]
    close(tokens + attention, "after_attention0")
    for i in range(module.depth):
      close(seen[f"encoderblock_{i}"]["__call__"][0], f"block{i}")

    theirs = trees.flatten(toy.tree(file, "grad/", tmp_path, module))
    assert theirs.keys() == trees.flatten(grads).keys()
    for name, grad in trees.flatten(grads).items():
      toy.close(grad, theirs[name], dtype=dtype, float32=GRAD, name=name)


@pytest.mark.parametrize("dtype", ["float64"])
def test_sliding_patches(golden, tmp_path, dtype):
  file = golden("gslora", "face_vits_forward")
  with toy.precision(dtype):
    window = toy.meta(file)["model"]
    side, padding = window["ac_patch"], window["pad"]
    module = toy.model(file, dtype, patch_size=side, padding=padding)
    params = toy.tree(file, "params/", tmp_path, module)
    batch = toy.inputs(file, dtype)
    patches = encoder.slide(
      batch["image"], side, stride=module.stride, padding=padding
    )
    channel_first = jnp.moveaxis(patches, -1, 2)
    theirs = file["out/patches"]
    assert theirs.shape[1] == module.num_patches
    np.testing.assert_array_equal(
      channel_first.reshape(theirs.shape), theirs.astype(dtype)
    )
    (_, outputs), grads = jax.jit(
      jax.value_and_grad(lambda p: mean_loss(module, p, batch), has_aux=True)
    )(params)
    for ours, theirs in (("features", "embedding"), ("logits", "logits")):
      toy.close(outputs[ours], file[f"out/{theirs}"], dtype=dtype, float32=OUT)
    # Of the blocks there is none; they are left at the parameters' values.
    given = toy.weights(file, "grad/", module)
    filled = {**toy.weights(file, "params/", module), **given}
    theirs = trees.flatten(toy.load(filled, tmp_path, module))
    compared = [n for n in theirs if "encoderblock" not in n]
    assert len(compared) == len(given)
    for name in compared:
      ours = trees.flatten(grads)[name]
      toy.close(ours, theirs[name], dtype=dtype, float32=GRAD, name=name)


@pytest.mark.parametrize("dtype", ["float64"])
@pytest.mark.parametrize("case", ["vit_ffn", "vit_attention"])
def test_adapters(golden, tmp_path, dtype, case):
  file = golden("gslora", "lora_forward_merge")
  settings = toy.adapted(file, case.removeprefix("vit_"))
  with toy.precision(dtype):
    module = toy.model(file, dtype, lora=settings)
    assert module.lora_scale == toy.meta(file)["scale"]
    base = toy.tree(file, "params/vit/", tmp_path, module)
    found = toy.adapters(file, f"params/{case}/")
    params = toy.with_adapters(base, found, module)
    batch = toy.inputs(file, dtype, "in/vit/")

    def close(ours, name):
      theirs = file[f"out/{case}/{name}"]
      toy.close(ours, theirs, dtype=dtype, float32=ADAPTED, name=name)

    (_, outputs), grads = jax.jit(
      jax.value_and_grad(lambda p: mean_loss(module, p, batch), has_aux=True)
    )(params)
    close(outputs["logits"], "logits")
    close(outputs["features"], "embedding")
    theirs = toy.adapters(file, f"grad/{case}/")
    assert theirs.keys() == found.keys()
    for name, value in theirs.items():
      ours = trees.flatten(grads)[name]
      toy.close(ours, value, dtype=dtype, float32=ADAPTED, name=name)

    merged = lora.merge(params, module.lora_scale)
    silent = jax.jit(module.apply)({"params": merged}, batch)
    close(silent["logits"], "logits_merged")
    # Merged and without adapters: the plain model, to the last bit.
    plain, _ = lora.split(merged)
    again = jax.jit(toy.model(file, dtype).apply)({"params": plain}, batch)
    np.testing.assert_array_equal(again["logits"], silent["logits"])
    changed = toy.weights(file, f"out/{case}/merged/", module)
    whole = {**toy.weights(file, "params/vit/", module), **changed}
    theirs = trees.flatten(toy.load(whole, tmp_path, module))
    for name, value in trees.flatten(plain).items():
      toy.close(value, theirs[name], dtype=dtype, float32=ADAPTED, name=name)
    # The authors draw A anew with another slope than at first.
    fresh = lora.restart(lora.split(params)[1], jax.random.key(0), slope=SLOPE)
    drawn = {
      name: jnp.abs(leaf).max() * math.sqrt(len(leaf))
      for name, leaf in trees.flatten(fresh).items()
      if name.endswith("lora_a")
    }
    bound = float(file[f"out/{case}/restart_bound_times_sqrt_in"])
    assert bound == pytest.approx(math.sqrt(6 / (1 + SLOPE**2)), rel=1e-12)
    assert 0.9 * bound < max(drawn.values()) <= bound * (1 + 1e-6)


def everywhere(file):
  """Returns the file's adapters, at every layer."""
  numbers = toy.meta(file)
  found = lora.Lora(
    layers=".*", rank=numbers["rank"], alpha=numbers["lora_alpha"]
  )
  assert found.scale == numbers["scale"]
  return found


def flow(layer, params, x):
  """Returns the mean square of what a layer makes, and that."""
  y = jax.jit(layer.apply)({"params": params}, x)
  return jnp.mean(y**2), y


@pytest.mark.parametrize("dtype", ["float64"])
def test_one_adapted_layer(golden, dtype):
  file = golden("gslora", "lora_forward_merge")
  with toy.precision(dtype):

    def read(prefix):
      return {
        LEAVES[name]: jnp.asarray(value.T, dtype)
        for name, value in file.part(prefix).items()
      }

    params, x = read("params/linear/"), jnp.asarray(file["in/linear/x"], dtype)
    settings = everywhere(file)
    layer = settings(params["bias"].size, dtype=dtype, param_dtype=dtype)
    (_, y), grads = jax.value_and_grad(flow, argnums=1, has_aux=True)(
      layer, params, x
    )
    merged = lora.merge(params, settings.scale)
    plain = {**params, "lora_b": jnp.zeros_like(params["lora_b"])}
    for ours, name in (
      (y, "y"),
      (merged["kernel"].T, "merged_weight"),
      (jax.jit(layer.apply)({"params": merged}, x), "y_merged"),
      (jax.jit(layer.apply)({"params": plain}, x), "y_base"),
    ):
      theirs = file[f"out/linear/{name}"]
      toy.close(ours, theirs, dtype=dtype, float32=ADAPTED, name=name)
    for name, value in read("grad/linear/").items():
      toy.close(grads[name], value, dtype=dtype, float32=ADAPTED, name=name)


@pytest.mark.parametrize("dtype", ["float64"])
def test_the_joint_projection_is_three_adapters(golden, dtype):
  file = golden("gslora", "lora_forward_merge")
  with toy.precision(dtype):
    x = jnp.asarray(file["in/merged/x"], dtype)

    def parts(prefix):
      split = {
        LEAVES[name]: np.split(value, 3)
        for name, value in file.part(prefix).items()
      }
      return [
        {name: jnp.asarray(v[i].T, dtype) for name, v in split.items()}
        for i in range(3)
      ]

    params = parts("params/merged/")
    features, settings = params[0]["kernel"].shape[1], everywhere(file)
    layer = settings(features, use_bias=False, dtype=dtype, param_dtype=dtype)

    def loss(params):
      y = [jax.jit(layer.apply)({"params": p}, x) for p in params]
      y = jnp.concatenate(y, axis=-1)
      return jnp.mean(y**2), y

    (_, y), grads = jax.value_and_grad(loss, has_aux=True)(params)
    merged = [lora.merge(p, settings.scale) for p in params]
    weight = jnp.concatenate([p["kernel"].T for p in merged])
    for ours, name in (
      (y, "y"),
      (weight, "merged_weight"),
      (loss(merged)[1], "y_merged"),
    ):
      theirs = file[f"out/merged/{name}"]
      toy.close(ours, theirs, dtype=dtype, float32=ADAPTED, name=name)
    for ours, theirs in zip(grads, parts("grad/merged/"), strict=True):
      for name, value in theirs.items():
        toy.close(ours[name], value, dtype=dtype, float32=ADAPTED, name=name)


@pytest.mark.parametrize("dtype", ["float64"])
def test_adapted_mlp(golden, dtype):
  file = golden("gslora", "lora_forward_merge")
  with toy.precision(dtype):
    params = {
      ours: {
        LEAVES[name]: jnp.asarray(value.T, dtype)
        for name, value in file.part(f"params/ffn/{theirs}.").items()
      }
      for ours, theirs in (("Dense_0", "net.0"), ("Dense_1", "net.3"))
    }
    mlp = layers.Mlp(
      params["Dense_0"]["bias"].size,
      gelu="erf",
      dtype=dtype,
      param_dtype=dtype,
      dense=everywhere(file),
    )
    y = jax.jit(mlp.apply)(
      {"params": params}, jnp.asarray(file["in/ffn/x"], dtype)
    )
    toy.close(y, file["out/ffn/y"], dtype=dtype, float32=ADAPTED)
