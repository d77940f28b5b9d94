"""The Face Transformer against the reference's numbers (golden/gslora)."""

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

OUT, GRAD = 5e-6, 2e-5


def mean_loss(module, params, batch):
  outputs = module.apply({"params": params}, batch)
  loss = optax.softmax_cross_entropy_with_integer_labels(
    outputs["logits"], batch["label"]
  )
  return loss.mean(), outputs


@pytest.mark.parametrize("dtype", toy.TYPES)
def test_forward_and_gradient(golden, tmp_path, dtype):
  file = golden("gslora", "face_vit_forward")
  with toy.precision(dtype):
    module = toy.model(dtype)
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
    unlabelled = module.apply({"params": params}, {"image": batch["image"]})
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
    for i in range(4):
      close(seen[f"encoderblock_{i}"]["__call__"][0], f"block{i}")

    theirs = trees.flatten(toy.tree(file, "grad/", tmp_path, module))
    assert theirs.keys() == trees.flatten(grads).keys()
    for name, grad in trees.flatten(grads).items():
      toy.close(grad, theirs[name], dtype=dtype, float32=GRAD, name=name)


@pytest.mark.parametrize("dtype", toy.TYPES)
def test_sliding_patches(golden, tmp_path, dtype):
  file = golden("gslora", "face_vits_forward")
  with toy.precision(dtype):
    module = toy.model(dtype, patch_size=12, padding=4)
    assert module.num_patches == 16
    params = toy.tree(file, "params/", tmp_path, module)
    batch = toy.inputs(file, dtype)
    patches = encoder.slide(batch["image"], 12, stride=8, padding=4)
    channel_first = patches.transpose(0, 1, 4, 2, 3).reshape(6, 16, 432)
    np.testing.assert_array_equal(
      channel_first, file["out/patches"].astype(dtype)
    )
    (_, outputs), grads = jax.jit(
      jax.value_and_grad(lambda p: mean_loss(module, p, batch), has_aux=True)
    )(params)
    for ours, theirs in (("features", "embedding"), ("logits", "logits")):
      toy.close(outputs[ours], file[f"out/{theirs}"], dtype=dtype, float32=OUT)
    stored = {name for name in file if name.startswith("grad/")}
    assert len(stored) == 7
    # What is not stored is left at the parameters' values.
    filled = {
      **{k.replace("params/", "grad/"): v for k, v in file.items()},
      **{name: file[name] for name in stored},
    }
    theirs = trees.flatten(toy.tree(filled, "grad/", tmp_path, module))
    compared = 0
    for name, grad in trees.flatten(grads).items():
      if "encoderblock" not in name:
        toy.close(grad, theirs[name], dtype=dtype, float32=GRAD, name=name)
        compared += 1
    assert compared == 7


@pytest.mark.parametrize("dtype", toy.TYPES)
@pytest.mark.parametrize("case", ["vit_ffn", "vit_attention"])
def test_adapters(golden, tmp_path, dtype, case):
  file = golden("gslora", "lora_forward_merge")
  places = {"vit_ffn": toy.FFN, "vit_attention": toy.ATTENTION}
  with toy.precision(dtype):
    module = toy.model(dtype, lora=places[case])
    assert module.lora_scale == 0.5
    base = toy.tree(file, "params/vit/", tmp_path, module)
    found = toy.adapters(file, f"params/{case}/")
    params = toy.with_adapters(base, found, module)
    batch = toy.inputs(file, dtype, "in/vit/")

    def close(ours, name, *, allowed=2e-5):
      theirs = file[f"out/{case}/{name}"]
      toy.close(ours, theirs, dtype=dtype, float32=allowed, name=name)

    (_, outputs), grads = jax.jit(
      jax.value_and_grad(lambda p: mean_loss(module, p, batch), has_aux=True)
    )(params)
    close(outputs["logits"], "logits")
    close(outputs["features"], "embedding")
    theirs = toy.adapters(file, f"grad/{case}/")
    assert theirs.keys() == found.keys() and len(found) in (16, 24)
    for name, value in theirs.items():
      ours = trees.flatten(grads)[name]
      toy.close(ours, value, dtype=dtype, float32=2e-5, name=name)

    merged = lora.merge(params, module.lora_scale)
    silent = module.apply({"params": merged}, batch)
    close(silent["logits"], "logits_merged")
    # Merged and without adapters: the plain model, to the last bit.
    plain, _ = lora.split(merged)
    again = toy.model(dtype).apply({"params": plain}, batch)
    np.testing.assert_array_equal(again["logits"], silent["logits"])
    stored = {
      f"merged/{name.removeprefix('params/vit/')}": value
      for name, value in file.items()
      if name.startswith("params/vit/")
    }
    prefix = f"out/{case}/merged/"
    changed = {n: v for n, v in file.items() if n.startswith(prefix)}
    stored |= {n.removeprefix(f"out/{case}/"): v for n, v in changed.items()}
    theirs = trees.flatten(toy.tree(stored, "merged/", tmp_path, module))
    for name, value in trees.flatten(plain).items():
      toy.close(value, theirs[name], dtype=dtype, float32=2e-5, name=name)
    bound = file[f"out/{case}/restart_bound_times_sqrt_in"]
    assert abs(bound - np.sqrt(6 / 51)) < 1e-12


@pytest.mark.parametrize("dtype", toy.TYPES)
def test_one_adapted_layer(golden, dtype):
  file = golden("gslora", "lora_forward_merge")

  def flow(params, x, layer):
    y = layer.apply({"params": params}, x)
    return jnp.mean(y**2), y

  with toy.precision(dtype):
    settings = lora.Lora(layers=".*", rank=2, alpha=1.0)
    layer = settings(20, dtype=dtype, param_dtype=dtype)

    def read(prefix):
      return {
        ours: jnp.asarray(file[f"{prefix}{theirs}"].T, dtype)
        for ours, theirs in (
          ("kernel", "weight"),
          ("bias", "bias"),
          ("lora_a", "lora_A"),
          ("lora_b", "lora_B"),
        )
        if f"{prefix}{theirs}" in file
      }

    params, x = read("params/linear/"), jnp.asarray(file["in/linear/x"], dtype)
    (_, y), grads = jax.value_and_grad(flow, has_aux=True)(params, x, layer)
    merged = lora.merge(params, settings.scale)
    plain = {**params, "lora_b": jnp.zeros_like(params["lora_b"])}
    for ours, name in (
      (y, "y"),
      (merged["kernel"].T, "merged_weight"),
      (layer.apply({"params": merged}, x), "y_merged"),
      (layer.apply({"params": plain}, x), "y_base"),
    ):
      theirs = file[f"out/linear/{name}"]
      toy.close(ours, theirs, dtype=dtype, float32=2e-5, name=name)
    for name, value in read("grad/linear/").items():
      toy.close(grads[name], value, dtype=dtype, float32=2e-5, name=name)


@pytest.mark.parametrize("dtype", toy.TYPES)
def test_the_joint_projection_is_three_adapters(golden, dtype):
  file = golden("gslora", "lora_forward_merge")
  with toy.precision(dtype):
    settings = lora.Lora(layers=".*", rank=2, alpha=1.0)
    layer = settings(32, use_bias=False, dtype=dtype, param_dtype=dtype)
    x = jnp.asarray(file["in/merged/x"], dtype)

    def parts(prefix):
      split = {
        ours: np.split(file[f"{prefix}{theirs}"], 3)
        for ours, theirs in (
          ("kernel", "weight"),
          ("lora_a", "lora_A"),
          ("lora_b", "lora_B"),
        )
        if f"{prefix}{theirs}" in file
      }
      return [
        {name: jnp.asarray(v[i].T, dtype) for name, v in split.items()}
        for i in range(3)
      ]

    def loss(params):
      y = [layer.apply({"params": p}, x) for p in params]
      y = jnp.concatenate(y, axis=-1)
      return jnp.mean(y**2), y

    params = parts("params/merged/")
    (_, y), grads = jax.value_and_grad(loss, has_aux=True)(params)
    merged = [lora.merge(p, settings.scale) for p in params]
    weight = jnp.concatenate([p["kernel"].T for p in merged])
    for ours, name in (
      (y, "y"),
      (weight, "merged_weight"),
      (loss(merged)[1], "y_merged"),
    ):
      theirs = file[f"out/merged/{name}"]
      toy.close(ours, theirs, dtype=dtype, float32=2e-5, name=name)
    for ours, theirs in zip(grads, parts("grad/merged/"), strict=True):
      for name, value in theirs.items():
        toy.close(ours[name], value, dtype=dtype, float32=2e-5, name=name)


@pytest.mark.parametrize("dtype", toy.TYPES)
def test_adapted_mlp(golden, dtype):
  file = golden("gslora", "lora_forward_merge")
  with toy.precision(dtype):
    settings = lora.Lora(layers=".*", rank=2, alpha=1.0)
    mlp = layers.Mlp(
      64, gelu="erf", dtype=dtype, param_dtype=dtype, dense=settings
    )
    params = {
      ours: {
        leaf: jnp.asarray(file[f"params/ffn/{theirs}.{name}"].T, dtype)
        for leaf, name in (
          ("kernel", "weight"),
          ("bias", "bias"),
          ("lora_a", "lora_A"),
          ("lora_b", "lora_B"),
        )
      }
      for ours, theirs in (("Dense_0", "net.0"), ("Dense_1", "net.3"))
    }
    y = mlp.apply({"params": params}, jnp.asarray(file["in/ffn/x"], dtype))
    toy.close(y, file["out/ffn/y"], dtype=dtype, float32=2e-5)
