"""The tiny ViT of tests/golden/l2p, its prompts, and its files."""

import json

from flax import traverse_util

from models import prompts
from models import vit


def config(file):
  """Returns the settings of a file's case."""
  return json.loads(str(file["in/config"]))


def model(config, **changes):
  """Returns the plain ViT of a config; its feature is the class token."""
  sizes = dict(
    num_classes=config["classes"],
    image_size=config["image"],
    patch_size=config["patch"],
    width=config["hidden"],
    mlp_dim=config["mlp"],
    num_heads=config["heads"],
    depth=config["layers"],
  )
  return vit.build(**{**sizes, **changes})


def options(config):
  """Returns the settings that Prompts and the methods share."""
  return dict(
    e_layers=tuple(config["e_layers"]),
    e_prefix=config["e_prefix"],
    pool_size=config["pool"],
    length=config["length"],
    top_k=config["top_k"],
    prompt_key=config["prompt_key"],
    e_same_key_value=config.get("same_key_value_e", False),
    g_layers=tuple(config.get("g_layers", ())),
    g_prefix=config.get("g_prefix", True),
    g_length=config.get("g_length", 1),
    g_same_key_value=config.get("same_key_value_g", False),
    reweight=config.get("reweight_prompt", False),
  )


def build_prompts(config):
  return prompts.Prompts(
    width=config["hidden"],
    num_heads=config["heads"],
    depth=config["layers"],
    **options(config),
  )


def tree(file, prefix):
  """Returns the arrays of a prefix as a tree."""
  return traverse_util.unflatten_dict(file.part(prefix), sep="/")
