"""The toy model of tests/golden/lora_sub, and its parts under our names."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import numpy as safetensors

from libml import optim
from libml import problems
from libml import trees
from methods import lora_sub
from models import lora
from models import pretrained
from models import vit

SIZES = dict(
  num_classes=9,
  patch_size=8,
  image_size=32,
  width=32,
  depth=3,
  mlp_dim=128,
  num_heads=4,
  gelu="erf",
)
ADAPTERS = {"layers": r".*/(key|value)", "rank": 3}
ATTENTION = "Transformer/encoderblock_{}/MultiHeadDotProductAttention_0"
# Reference's name in a block -> ours in its attention, transposed.
ADAPTED = {
  "lora_A_k.weight": "key/lora_a",
  "lora_B_k.weight": "key/lora_b",
  "lora_A_v.weight": "value/lora_a",
  "lora_B_v.weight": "value/lora_b",
}
PREVIOUS = {"prev_k_weight": "key", "prev_v_weight": "value"}


def model(**changes):
  return vit.build(**{**SIZES, "block_epsilon": 1e-5, **changes}, lora=ADAPTERS)


def image(array):
  return jnp.asarray(array.transpose(0, 2, 3, 1) / 255, jnp.float32)


def adapters(file, prefix):
  """Returns the stored adapters under our names."""
  return {
    f"{ATTENTION.format(i)}/{ours}": file[name].T
    for i in range(SIZES["depth"])
    for theirs, ours in ADAPTED.items()
    if (name := f"{prefix}transformer.blocks.{i}.attn.{theirs}") in file
  }


def old_sums(file, prefix):
  """Returns the stored old sums S as kernels under our names."""
  found = {}
  for i in range(SIZES["depth"]):
    for theirs, layer in PREVIOUS.items():
      name = f"{prefix}transformer.blocks.{i}.attn.{theirs}"
      if name in file:
        kernel = f"{ATTENTION.format(i)}/{layer}/kernel"
        found[kernel] = file[name].T.reshape(32, 4, 8)
  return traverse_util.unflatten_dict(found, sep="/")


def read_params(file, tmp_path, module):
  """Returns the stored parameters W, with stored or zero adapters."""
  weights = {
    name.removeprefix("params/")
    .replace("transformer.blocks", "blocks")
    .replace("ln_1", "norm1")
    .replace("ln_2", "norm2"): np.ascontiguousarray(value)
    for name, value in file.items()
    if name.startswith("params/")
    and not any(part in name for part in ("lora_", "prev_", "classifier"))
  }
  safetensors.save_file(weights, tmp_path / "toy.safetensors")
  shapes = jax.eval_shape(
    module.init, jax.random.key(0), {"image": jnp.zeros((1, 32, 32, 3))}
  )["params"]
  base, added = lora.split(shapes)
  params = pretrained.load(tmp_path / "toy.safetensors", base)
  added = lora.restart(added, jax.random.key(0))
  return trees.update(lora.join(params, added), adapters(file, "params/"))


def silent(params):
  """Returns the parameters without what the adapters do."""
  return trees.map_named(
    lambda name, x: x * 0 if name.endswith("lora_b") else x, params
  )


def close(ours, theirs, tolerance, name=""):
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=name)


def method(**changes):
  return lora_sub.LoraSub(
    **{
      "model": model(),
      "problem": problems.PROBLEMS["classification"](),
      "num_classes": 9,
      "num_stages": 3,
      "unit_norm": True,
      **changes,
    }
  )


def optimizer(l2=0.0, lr=0.01, head_lr=0.02, epochs=1):
  adam = dict(
    name="adam", epsilon_hat=True, l2=l2, schedule="late_quarter_cosine"
  )
  return optim.build(
    groups=(
      ("lora", r".*/lora_[ab]|lora_[ab]"),
      ("head", r"head/.*"),
      ("backbone", r".*"),
    ),
    epochs=epochs,
    lora={**adam, "lr": lr, "project": "update"},
    head={**adam, "lr": head_lr},
    backbone=None,
  )
