"""The tiny Face Transformers of the family gslora under our names."""

import contextlib
import functools
import json

import figures
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from libml import trees
from models import face_vit
from models import lora
from models import pretrained

# Place -> the dense layers that have an adapter.
PLACES = {
  "ffn": r".*/MlpBlock_0/Dense_[01]",
  "attention": r".*/(query|key|value)",
}
TYPES = ("float64", "float32")
# The published layout tells patches that slide by a side above this.
_WHOLE_PATCH = 8


def stored(name):
  """Returns a file of the family; for the cases that parametrize tests."""
  return figures.Reader(figures.folder())("gslora", name)


def meta(file):
  """Returns the settings in a file."""
  return json.loads(str(file["meta"]))


@contextlib.contextmanager
def precision(dtype):
  """Lets arrays be float64 where that is the type."""
  with jax.enable_x64(dtype == "float64"):
    yield


def sizes(file):
  """Returns the sizes and the head of a file's model, fields of FaceViT."""
  settings = meta(file)
  model = settings["model"]
  return dict(
    head=settings.get("head", "CosFace").lower(),
    scale=settings.get("s"),
    margin=settings.get("m"),
    patch_size=model["patch"],
    stride=model["patch"],
    image_size=model["image"],
    width=model["dim"],
    depth=model["depth"],
    mlp_dim=model["mlp"],
    num_heads=model["heads"],
    head_dim=model["dim_head"],
    dropout=0.0,
  )


def num_classes(file):
  return meta(file)["model"]["classes"]


def adapted(file, place):
  """Returns a file's adapters at a place, as the model option "lora"."""
  settings = meta(file)
  return {
    "layers": PLACES[place],
    "rank": settings["model"]["rank"],
    "alpha": settings.get("lora_alpha", 1.0),
  }


def model(file, dtype, **changes):
  """Returns the model of a file."""
  fields = {**sizes(file), "num_classes": num_classes(file), **changes}
  return face_vit.build(**fields, dtype=dtype, param_dtype=dtype)


def images(array, dtype):
  """Returns images [..., 3, S, S] with the channels last."""
  return jnp.asarray(np.moveaxis(array, -3, -1), dtype)


def inputs(file, dtype, prefix="in/"):
  return {
    "image": images(file[f"{prefix}image"], dtype),
    "label": jnp.asarray(file[f"{prefix}label"], jnp.int32),
  }


@functools.cache
def template(module):
  size = module.image_size
  image = {"image": jnp.zeros((1, size, size, 3))}
  return jax.eval_shape(module.init, jax.random.key(0), image)["params"]


def weights(file, prefix, module):
  """Returns the arrays of a prefix by the reference's names, no adapters.

  A flat patch embedding whose order of axes the published layout would mistake
  becomes the kernel of a convolution.
  """
  found = {k: v for k, v in file.part(prefix).items() if "lora_" not in k}
  name = "patch_to_embedding.weight"
  side, slides = module.patch_size, module.patch_size != module.stride
  if name in found and slides != (side > _WHOLE_PATCH):
    shape = (3, side, side) if slides else (side, side, 3)
    kernel = found[name].reshape(-1, *shape)
    found[name] = kernel if slides else kernel.transpose(0, 3, 1, 2)
  return found


def load(found, folder, module):
  """Returns arrays by the reference's names as a tree, as of a checkpoint."""
  found = {k: np.ascontiguousarray(v) for k, v in found.items()}
  safetensors.save_file(found, folder / "toy.safetensors")
  base, _ = lora.split(template(module))
  return pretrained.load(folder / "toy.safetensors", base, head="keep")


def tree(file, prefix, folder, module):
  """Returns the arrays of a prefix as a plain tree, as a checkpoint's are."""
  return load(weights(file, prefix, module), folder, module)


def adapters(file, prefix):
  """Returns the stored adapters by our names."""
  found = {}
  for name, value in file.part(prefix).items():
    if "lora_" not in name:
      continue
    module, letter = name.split(".lora_")
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


def close(ours, theirs, *, dtype, float32, float64=1e-11, name=""):
  """Compares, relative to the largest entry."""
  allowed = {"float64": float64, "float32": float32}[dtype]
  assert ours.dtype == np.dtype(dtype), name
  np.testing.assert_allclose(
    ours, theirs, rtol=0, atol=allowed * np.abs(theirs).max(), err_msg=name
  )
