"""The tiny Face Transformer of tests/golden/gslora under our names."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from libml import trees
from models import face_vit
from models import lora
from models import pretrained

SIZES = dict(
  num_classes=10,
  patch_size=8,
  stride=8,
  image_size=32,
  width=32,
  depth=4,
  mlp_dim=64,
  num_heads=4,
)
FFN = {"layers": r".*/MlpBlock_0/Dense_[01]", "rank": 2, "alpha": 1.0}
ATTENTION = {"layers": r".*/(query|key|value)", "rank": 2, "alpha": 1.0}
TYPES = ("float64", "float32")


@contextlib.contextmanager
def precision(dtype):
  """Lets arrays be float64 where that is the type."""
  with jax.enable_x64(dtype == "float64"):
    yield


def model(dtype, **changes):
  return face_vit.build(
    **{**SIZES, "dtype": dtype, "param_dtype": dtype, **changes}
  )


def inputs(file, dtype, prefix="in/"):
  image = file[f"{prefix}image"].transpose(0, 2, 3, 1)
  return {
    "image": jnp.asarray(image, dtype),
    "label": jnp.asarray(file[f"{prefix}label"], jnp.int32),
  }


@functools.cache
def template(module):
  size = module.image_size
  image = {"image": jnp.zeros((1, size, size, 3))}
  return jax.eval_shape(module.init, jax.random.key(0), image)["params"]


def tree(file, prefix, folder, module):
  """Returns the arrays of a prefix as a plain tree, as a checkpoint's are."""
  weights = {
    name.removeprefix(prefix): np.ascontiguousarray(value)
    for name, value in file.items()
    if name.startswith(prefix) and "lora_" not in name
  }
  safetensors.save_file(weights, folder / "toy.safetensors")
  base, _ = lora.split(template(module))
  return pretrained.load(folder / "toy.safetensors", base, head="keep")


def adapters(file, prefix):
  """Returns the stored adapters by our names."""
  found = {}
  for name, value in file.items():
    if not (name.startswith(prefix) and "lora_" in name):
      continue
    module, letter = name.removeprefix(prefix).split(".lora_")
    block = f"Transformer/encoderblock_{module.split('.')[2]}"
    leaf = f"lora_{letter.lower()}"
    if module.endswith("to_qkv"):
      for part, piece in zip(
        ("query", "key", "value"), np.split(value, 3), strict=True
      ):
        attention = f"{block}/MultiHeadDotProductAttention_0"
        found[f"{attention}/{part}/{leaf}"] = piece.T
    else:
      dense = {"0": "Dense_0", "3": "Dense_1"}[module[-1]]
      found[f"{block}/MlpBlock_0/{dense}/{leaf}"] = value.T
  return found


def with_adapters(params, found, module):
  """Returns a tree with these adapters, in the module's types."""
  _, fresh = lora.split(template(module))
  assert trees.flatten(fresh).keys() == found.keys()
  return lora.join(
    params,
    trees.map_named(
      lambda name, leaf: np.asarray(found[name], leaf.dtype), fresh
    ),
  )


def close(ours, theirs, *, dtype, float32, name=""):
  """Compares, relative to the largest entry."""
  allowed = {"float64": 1e-11, "float32": float32}[dtype]
  assert ours.dtype == np.dtype(dtype), name
  np.testing.assert_allclose(
    ours, theirs, rtol=0, atol=allowed * np.abs(theirs).max(), err_msg=name
  )
