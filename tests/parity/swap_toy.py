"""The tiny ViT of tests/golden/swapping under our names."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from unlearn_toy import remembering

import main
from configs import base
from configs import common
from configs import swaps
from libml import trees
from models import layouts
from models import vit

SIZES = dict(
  image_size=32,
  patch_size=8,
  width=32,
  depth=3,
  mlp_dim=128,
  num_heads=4,
  dropout=0.0,
  gelu="erf",
)
# The reference's names -> timm's.
_NAMES = {
  r"transformer\.embeddings\.position_embeddings": "pos_embed",
  r"transformer\.embeddings\.cls_token": "cls_token",
  r"transformer\.embeddings\.patch_embeddings\.": "patch_embed.proj.",
  r"transformer\.encoder\.layer\.(\d+)\.": r"blocks.\1.",
  r"\.attention_norm\.": ".norm1.",
  r"\.ffn_norm\.": ".norm2.",
  r"\.attn\.out\.": ".attn.proj.",
  r"\.ffn\.fc": ".mlp.fc",
  r"transformer\.encoder\.encoder_norm\.": "norm.",
}


def model(num_classes=12, adapted=True):
  """Returns the ViT, with the adapters or without."""
  adapters = common.ffn_lora() if adapted else None
  return vit.build(**SIZES, num_classes=num_classes, lora=adapters)


@functools.cache
def template(module):
  size = module.image_size
  image = {"image": jnp.zeros((1, size, size, 3))}
  return jax.eval_shape(module.init, jax.random.key(0), image)["params"]


def leaves(file, prefix, module):
  """Returns the arrays of a prefix by our names, in our layout."""
  found, adapters = {}, {}
  for name, array in file.items():
    if not name.startswith(prefix):
      continue
    name = name.removeprefix(prefix)
    for theirs, timms in _NAMES.items():
      name = re.sub(theirs, timms, name)
    layer, _, letter = name.partition(".lora_")
    if letter:
      block, number = re.fullmatch(
        r"blocks\.(\d+)\.mlp\.fc(\d)", layer
      ).groups()
      dense = f"encoderblock_{block}/MlpBlock_0/Dense_{int(number) - 1}"
      adapters[f"Transformer/{dense}/lora_{letter.lower()}"] = array.T
    else:
      found[name] = array
  expected = trees.flatten(template(module))
  # What is told by the class token alone is there in a whole tree only.
  marked = {"cls_token": np.zeros(0), **found}
  base_leaves = layouts.to_linen(
    marked, expected, source=prefix, adapters="merged"
  )
  if "cls_token" not in found:
    del base_leaves["cls"]
  whole = {**base_leaves, **adapters}
  assert whole and whole.keys() <= expected.keys()
  return whole


def tree(file, prefix, module):
  """Returns the arrays of a prefix as the module's parameters."""
  found = leaves(file, prefix, module)
  assert found.keys() == trees.flatten(template(module)).keys()
  return trees.map_named(
    lambda name, leaf: jnp.asarray(found[name], leaf.dtype), template(module)
  )


def images(array):
  """Returns uint8 [B, 3, S, S] as the model takes them."""
  image = (array.transpose(0, 2, 3, 1).astype(np.float32) / 255 - 0.5) / 0.5
  return jnp.asarray(image)


def batch(file, name):
  label = jnp.asarray(file[f"in/{name}/label"], jnp.int32)
  return {"image": images(file[f"in/{name}/image"]), "label": label}


def build(epochs=5, **options):
  """Returns the method and the optimizer, whose state[0] is a gradient."""
  config = base.get_config()
  config.epochs = epochs
  config.method = common.method("swapping", **options)
  swaps.optimizer(config, lr=1e-2)
  config.model = {
    "name": "vit",
    **SIZES,
    "lora": common.ffn_lora(),
  }
  method = main.build_method(config, 12, 2)
  optimizer = main.build_optimizer(config, method)
  return method, remembering(optimizer)


def close(ours, theirs, tolerance, name=""):
  """Compares, relative to the largest entry."""
  np.testing.assert_allclose(
    ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max(), err_msg=name
  )
