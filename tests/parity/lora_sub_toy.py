"""The toy model of tests/golden/lora_sub, and its parts under our names."""

import math

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

ATTENTION = "Transformer/encoderblock_{}/MultiHeadDotProductAttention_0"
# Reference's name in a block -> ours in its attention, transposed.
ADAPTED = {
  "lora_A_k.weight": "key/lora_a",
  "lora_B_k.weight": "key/lora_b",
  "lora_A_v.weight": "value/lora_a",
  "lora_B_v.weight": "value/lora_b",
}
PREVIOUS = {"prev_k_weight": "key", "prev_v_weight": "value"}


def model(file, num_classes=1, **changes):
  """Returns the ViT of a file; its last norm has the epsilon of all ours."""
  assert file["cfg/final_ln_eps"] == 1e-6
  patch, depth = int(file["cfg/patch"]), int(file["cfg/depth"])
  _, tokens, width = file["params/pos_embed"].shape
  sizes = dict(
    num_classes=num_classes,
    patch_size=patch,
    image_size=patch * math.isqrt(tokens - 1),
    width=width,
    depth=depth,
    mlp_dim=len(file["params/transformer.blocks.0.mlp.fc1.bias"]),
    num_heads=int(file["cfg/heads"]),
    gelu="erf",
    block_epsilon=float(file["cfg/block_ln_eps"]),
    lora={"layers": r".*/(key|value)", "rank": int(file["cfg/rank"])},
  )
  return vit.build(**{**sizes, **changes})


def image(array):
  return jnp.asarray(array.transpose(0, 2, 3, 1) / 255, jnp.float32)


def in_attention(file, prefix, table):
  """Returns stored arrays of the attentions, transposed, under our names."""
  found = {}
  for theirs, value in file.part(f"{prefix}transformer.blocks.").items():
    number, _, name = theirs.partition(".attn.")
    if name in table:
      found[f"{ATTENTION.format(number)}/{table[name]}"] = value.T
  return found


def adapters(file, prefix):
  """Returns the stored adapters under our names."""
  return in_attention(file, prefix, ADAPTED)


def old_sums(file, prefix, module):
  """Returns the stored old sums S as kernels under our names."""
  heads = (module.num_heads, module.width // module.num_heads)
  found = {
    f"{layer}/kernel": value.reshape(len(value), *heads)
    for layer, value in in_attention(file, prefix, PREVIOUS).items()
  }
  return traverse_util.unflatten_dict(found, sep="/")


def read_params(file, tmp_path, module):
  """Returns the stored parameters W, with stored or zero adapters."""
  weights = {
    name.replace("transformer.blocks", "blocks")
    .replace("ln_1", "norm1")
    .replace("ln_2", "norm2"): np.ascontiguousarray(value)
    for name, value in file.part("params/").items()
    if not any(part in name for part in ("lora_", "prev_", "classifier"))
  }
  safetensors.save_file(weights, tmp_path / "toy.safetensors")
  size = module.image_size
  shapes = jax.eval_shape(
    module.init, jax.random.key(0), {"image": jnp.zeros((1, size, size, 3))}
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


def method(module, **changes):
  return lora_sub.LoraSub(
    **{
      "model": module,
      "problem": problems.PROBLEMS["classification"](),
      "num_classes": module.num_classes,
      "num_stages": 1,
      "unit_norm": True,
      **changes,
    }
  )


def optimizer(file, l2=0.0, epochs=1, **options):
  """Returns Adam with the learning rates of a file."""
  adam = dict(
    name="adam",
    epsilon_hat=True,
    l2=l2,
    schedule="late_quarter_cosine",
    **options,
  )
  return optim.build(
    groups=(
      ("lora", r".*/lora_[ab]|lora_[ab]"),
      ("head", r"head/.*"),
      ("backbone", r".*"),
    ),
    epochs=epochs,
    lora={**adam, "lr": float(file["cfg/lr_lora"]), "project": "update"},
    head={**adam, "lr": float(file["cfg/lr_head"])},
    backbone=None,
  )
