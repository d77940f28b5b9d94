"""The tiny ViT of tests/golden/swapping under our names."""

import functools
import math
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
from models import lora
from models import vit

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


def sizes(file):
  """Returns ViT's fields for a file, all but the classes."""
  assert file["cfg/ln_eps"] == 1e-6  # that of all our norms
  patch, depth = int(file["cfg/patch"]), int(file["cfg/depth"])
  positions = file["params/transformer.embeddings.position_embeddings"]
  _, tokens, width = positions.shape
  hidden = file["params/transformer.encoder.layer.0.ffn.fc1.bias"]
  return dict(
    image_size=patch * math.isqrt(tokens - 1),
    patch_size=patch,
    width=width,
    depth=depth,
    mlp_dim=len(hidden),
    num_heads=int(file["cfg/heads"]),
    dropout=0.0,
    gelu="erf",
  )


def num_classes(file):
  return len(file["params/head.bias"])


def adapters(file):
  """Returns the fields of the adapters of a file."""
  assert file["cfg/scaling"] == 1 / file["cfg/rank"]
  return common.ffn_lora(int(file["cfg/rank"]))


def model(file, classes=None, adapted=True):
  """Returns the ViT of a file, with the adapters or without."""
  return vit.build(
    **sizes(file),
    num_classes=classes or num_classes(file),
    lora=adapters(file) if adapted else None,
  )


@functools.cache
def template(module):
  size = module.image_size
  image = {"image": jnp.zeros((1, size, size, 3))}
  return jax.eval_shape(module.init, jax.random.key(0), image)["params"]


def leaves(file, prefix, module):
  """Returns the arrays of a prefix by our names, in our layout."""
  found, added = {}, {}
  for name, array in file.part(prefix).items():
    for theirs, timms in _NAMES.items():
      name = re.sub(theirs, timms, name)
    layer, _, letter = name.partition(".lora_")
    if letter:
      block, number = re.fullmatch(
        r"blocks\.(\d+)\.mlp\.fc(\d)", layer
      ).groups()
      dense = f"encoderblock_{block}/MlpBlock_0/Dense_{int(number) - 1}"
      added[f"Transformer/{dense}/lora_{letter.lower()}"] = array.T
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
  whole = {**base_leaves, **added}
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


def build(file, *, bound="bound", **optimizer):
  """Returns the method and the optimizer, whose state[0] is a gradient.

  Args:
    file: Its weights are the method's.
    bound: Name of the bound in the file.
    **optimizer: Of the adapters, such as lr; "epochs" of a stage.
  """
  config = base.get_config()
  config.epochs = optimizer.pop("epochs", 1)
  config.method = common.method(
    "swapping",
    bound=float(file[f"cfg/{bound}"]),
    retain_weight=float(file["cfg/beta"]),
    forget_weight=float(file["cfg/beta"]),
    alpha=float(file["cfg/alpha"]),
  )
  swaps.optimizer(config, **{"lr": 1e-2, **optimizer})
  config.model = {"name": "vit", **sizes(file), "lora": adapters(file)}
  method = main.build_method(config, num_classes(file), 2)
  optimizer = main.build_optimizer(config, method)
  return method, remembering(optimizer)


def is_adapted(module, stored):
  """Says whether arrays by name are those of all adapters of the module."""
  _, added = lora.split(template(module))
  return stored.keys() == trees.flatten(added).keys()


def close(ours, theirs, tolerance, name=""):
  """Compares, relative to the largest entry."""
  np.testing.assert_allclose(
    ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max(), err_msg=name
  )
