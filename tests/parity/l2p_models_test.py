"""The models against the reference's numbers (tests/golden/l2p/README.md)."""

import math
import re

import figures
import jax
import jax.numpy as jnp
import l2p_toy as toy
import numpy as np
import pytest

from models import pretrained
from models import prompts
from models import selection

FIGURES = {
  "l2p/l2p_forward": {},
  "l2p/dualprompt_forward": {},
  "l2p/dualprompt_forward_mixed": {},
  "l2p/dualprompt_forward_same_kv": {},
  "l2p/dualprompt_forward_tuning": {},
  "l2p/head_variants": {},
  "l2p/prompt_pool": {},
  "l2p/vit_tiny_pretrained": {},
  "l2p/posembed_resize": {},
}
LOGITS, SIM = 5e-5, 1e-5


def check(outputs, chosen, file, case):
  def close(ours, name, atol):
    np.testing.assert_allclose(
      ours, file[f"out/{case}/{name}"], rtol=0, atol=atol, err_msg=case
    )

  close(outputs["logits"], "logits", LOGITS)
  close(outputs["features"], "pre_logits", LOGITS)
  if chosen is not None:
    close(chosen["sim"], "sim", SIM)
    np.testing.assert_array_equal(
      chosen["prompt_idx"], file[f"out/{case}/prompt_idx"]
    )
    # The reference gives one figure for each group that votes.
    groups = file[f"out/{case}/reduce_sim"].reshape(-1, 1)
    sim, idx = (
      jnp.split(chosen[name], len(groups)) for name in ("sim", "prompt_idx")
    )
    for part, group in zip(groups, zip(sim, idx, strict=True), strict=True):
      ours = selection.mean_similarity(*group)
      np.testing.assert_allclose(ours, part[0], rtol=0, atol=SIM, err_msg=case)
    assert abs(chosen["reduce_sim"] - groups.mean()) < SIM


def choice(file, case):
  """Returns the arguments of Prompts that a case's name stands for."""
  if masked := re.search(r"mask_task(\d+)$", case):
    return {"task": int(masked[1])}
  if case.endswith("instance"):
    return {}
  assert case.endswith(("_batchwise", "_two_groups")), case
  groups = file[f"out/{case}/reduce_sim"].size
  return {"vote_group": len(file["in/images"]) // groups}


FORWARD = [name for name in FIGURES if "forward" in name]


@pytest.mark.parametrize("path", FORWARD)
def test_forward(golden, path):
  file = golden(*path.split("/"))
  config = toy.config(file)
  params = toy.tree(file, "params/")
  plain = toy.model(config)
  model = plain.clone(classifier=config["classifier"])
  pool = toy.build_prompts(config)
  image, query = file["in/images"], file["in/cls_features"]

  outputs = jax.jit(plain.apply)({"params": params}, {"image": image})
  np.testing.assert_allclose(
    outputs["features"], query, rtol=0, atol=LOGITS, err_msg="query"
  )
  cases = figures.cases(path, r"out/([^/]+)/logits")
  assert cases
  for case in cases:
    if case == "plain":
      check(outputs, None, file, case)
      continue
    inputs, chosen = pool.apply({"params": params}, query, **choice(file, case))
    prompted = jax.jit(model.apply)(
      {"params": params}, {"image": image, **inputs}
    )
    check(prompted, chosen, file, case)


@pytest.mark.parametrize("path", FORWARD)
def test_initial_tree_has_the_reference_names(golden, path):
  file = golden(*path.split("/"))
  config = toy.config(file)
  pool, model = toy.build_prompts(config), toy.model(config)
  image = {"image": file["in/images"]}
  rng = jax.random.key(0)
  ours = {
    **jax.eval_shape(model.init, rng, image)["params"],
    **jax.eval_shape(pool.init, rng, file["in/cls_features"])["params"],
  }
  theirs = toy.tree(file, "params/")
  assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, theirs)


@pytest.mark.parametrize(
  "case", figures.cases("l2p/head_variants", r"out/([^/]+)/logits")
)
def test_head_variants(golden, case):
  file = golden("l2p", "head_variants")
  config = toy.config(file)
  variant = config["variants"].get(case, {})
  assert variant or case in ("prompt", "reweight"), case
  params = toy.tree(file, "params/")
  model = toy.model(config, **{"classifier": config["classifier"], **variant})
  pool = toy.build_prompts(config).clone(reweight=case == "reweight")
  inputs, chosen = jax.jit(pool.apply)(
    {"params": params}, file["in/cls_features"]
  )
  image = file["in/images"]
  outputs = jax.jit(model.apply)({"params": params}, {"image": image, **inputs})
  check(outputs, chosen, file, case)


@pytest.mark.parametrize(
  "case", figures.cases("l2p/prompt_pool", r"out/([^/]+)/sim")
)
def test_prompt_pool(golden, case):
  file = golden("l2p", "prompt_pool")
  config = toy.config(file)
  variant = config["variants"][case]
  prefix, same = variant["prefix"], variant["same_key_value"]
  leaf = "prompt" + prefix * ("_same" if same else "_kv")
  params = {"prompt": file[f"params/{leaf}"], "key": file["params/key"]}
  layers = len(params["prompt"])
  pool = prompts.Prompts(
    width=config["hidden"],
    num_heads=config["heads"],
    depth=layers,
    e_layers=tuple(range(layers)),
    e_prefix=prefix,
    pool_size=config["pool"],
    length=config["length"],
    top_k=config["top_k"],
    prompt_key=variant["prompt_key"],
    e_same_key_value=same,
  )
  if variant["embedding_key"] == "cls":
    query = file[f"in/query/{variant['query']}"]
  else:
    query = selection.query_from_patches(
      jnp.asarray(file["in/x_embed"]), variant["embedding_key"]
    )
  inputs, chosen = pool.apply(
    {"params": {"prompt_pool": params}},
    query,
    # The golden README: "mask of task 1".
    task=1 if variant["masked"] else None,
    vote_group=len(query) if variant["batchwise"] else None,
  )
  kind = "prefix" if prefix else "tokens"
  batched = np.stack([inputs["prompts"][i][kind] for i in range(layers)])
  ours = {**chosen, "batched_prompt": batched}
  theirs = file.part(f"out/{case}/")
  assert ours.keys() == theirs.keys()
  for name, value in theirs.items():
    exact = name in ("batched_prompt", "prompt_idx")
    np.testing.assert_allclose(
      ours[name],
      value,
      rtol=0,
      atol=0 if exact else 1e-6,
      err_msg=f"{case} {name}",
    )


@pytest.fixture
def load(golden, tmp_path):
  """Returns what loads the stored weights into the model of an image size."""
  np.savez(tmp_path / "vit.npz", **golden("l2p", "vit_tiny_pretrained"))
  file = golden("l2p", "posembed_resize")

  def load(size):
    model = toy.model(toy.config(file), image_size=size)
    image = {"image": jnp.zeros((1, size, size, 3))}
    template = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    params = pretrained.load(tmp_path / "vit.npz", template)
    assert not any(leaf.any() for leaf in params["head"].values())
    return model, {**params, "head": toy.tree(file, "in/head/")}

  return load


def test_weights_under_the_names_before_linen(golden, load):
  file = golden("l2p", "posembed_resize")
  _, params = load(toy.config(file)["image"])
  jax.tree.map(
    np.testing.assert_array_equal, params, toy.tree(file, "out/params/")
  )


@pytest.mark.parametrize(
  "grid", figures.cases("l2p/posembed_resize", r"out/pos_embedding_(.*)")
)
def test_positions_of_another_grid(golden, load, grid):
  file = golden("l2p", "posembed_resize")
  wanted = file[f"out/pos_embedding_{grid}"]
  side = math.isqrt(wanted.shape[1] - 1)
  _, params = load(toy.config(file)["patch"] * side)
  np.testing.assert_allclose(
    params["Transformer"]["posembed_input"]["pos_embedding"],
    wanted,
    rtol=0,
    atol=1e-6,
  )


@pytest.mark.parametrize(
  "case", figures.cases("l2p/posembed_resize", r"in/images_(.*)")
)
def test_loaded_weights_on_images_of_several_sizes(golden, load, case):
  file = golden("l2p", "posembed_resize")
  config = toy.config(file)
  image = {"image": file[f"in/images_{case}"]}
  plain, params = load(image["image"].shape[1])
  params["prompt_pool"] = toy.tree(file, "in/prompt_pool/")
  outputs = jax.jit(plain.apply)({"params": params}, image)
  check(outputs, None, file, case)
  inputs, chosen = toy.build_prompts(config).apply(
    {"params": params}, outputs["features"]
  )
  model = plain.clone(classifier=config["classifier"])
  outputs = jax.jit(model.apply)({"params": params}, {**image, **inputs})
  check(outputs, chosen, file, f"prompted_{case}")
