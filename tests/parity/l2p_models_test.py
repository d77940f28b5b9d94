"""The models against the reference's numbers (tests/golden/l2p/README.md)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from models import pretrained
from models import prompts
from models import selection
from models import vit

LOGITS, SIM = 5e-5, 1e-5
# Case -> arguments of Prompts.
CASES = {
  "train_batchwise": dict(vote_group=8),
  "train_instance": {},
  "train_mask_task1": dict(task=1),
  "eval_batchwise": dict(vote_group=8),
  "eval_instance": {},
  "eval_two_groups": dict(vote_group=4),
}
TOY = dict(
  num_classes=12, patch_size=8, width=32, depth=4, mlp_dim=64, num_heads=4
)


def unflatten(file, prefix):
  flat = {k: v for k, v in file.items() if k.startswith(prefix)}
  flat = {k.removeprefix(prefix): v for k, v in flat.items()}
  return traverse_util.unflatten_dict(flat, sep="/")


def build_prompts(config):
  return prompts.Prompts(
    width=config["hidden"],
    num_heads=config["heads"],
    depth=config["layers"],
    e_layers=config["e_layers"],
    e_prefix=config["e_prefix"],
    pool_size=config["pool"],
    length=config["length"],
    top_k=config["top_k"],
    e_same_key_value=config.get("same_key_value_e", False),
    g_layers=config.get("g_layers", ()),
    g_prefix=config.get("g_prefix", True),
    g_length=config.get("g_length", 5),
    g_same_key_value=config.get("same_key_value_g", False),
  )


def check(outputs, chosen, file, case):
  def close(ours, name, atol):
    np.testing.assert_allclose(
      ours, file[f"out/{case}/{name}"], rtol=0, atol=atol, err_msg=case
    )

  close(outputs["logits"], "logits", LOGITS)
  close(outputs["features"], "pre_logits", LOGITS)
  if chosen is not None:
    close(chosen["sim"], "sim", SIM)
    # The reference gives one figure for each device.
    reduce_sim = file[f"out/{case}/reduce_sim"].mean()
    assert abs(chosen["reduce_sim"] - reduce_sim) < SIM
    np.testing.assert_array_equal(
      chosen["prompt_idx"], file[f"out/{case}/prompt_idx"]
    )


@pytest.mark.parametrize(
  "name",
  [
    "l2p_forward",
    "dualprompt_forward",
    "dualprompt_forward_mixed",
    "dualprompt_forward_same_kv",
    "dualprompt_forward_tuning",
  ],
)
def test_forward(golden, name):
  file = golden("l2p", name)
  config = json.loads(str(file["in/config"]))
  params = unflatten(file, "params/")
  plain = vit.build(**TOY, image_size=32)
  model = plain.clone(classifier=config["classifier"])
  pool = build_prompts(config)
  image, query = file["in/images"], file["in/cls_features"]

  outputs = plain.apply({"params": params}, {"image": image})
  np.testing.assert_allclose(
    outputs["features"], query, rtol=0, atol=LOGITS, err_msg="query"
  )
  if "out/plain/logits" in file:
    check(outputs, None, file, "plain")
  cases = [case for case in CASES if f"out/{case}/logits" in file]
  assert len(cases) >= 4
  for case in cases:
    inputs, chosen = pool.apply({"params": params}, query, **CASES[case])
    outputs = model.apply({"params": params}, {"image": image, **inputs})
    check(outputs, chosen, file, case)


@pytest.mark.parametrize("name", ["l2p_forward", "dualprompt_forward_tuning"])
def test_initial_tree_has_the_reference_names(golden, name):
  file = golden("l2p", name)
  pool = build_prompts(json.loads(str(file["in/config"])))
  model = vit.build(**TOY, image_size=32)
  image = {"image": file["in/images"]}
  rng = jax.random.key(0)
  ours = {
    **jax.eval_shape(model.init, rng, image)["params"],
    **jax.eval_shape(pool.init, rng, file["in/cls_features"])["params"],
  }
  theirs = unflatten(file, "params/")
  assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, theirs)


def test_head_variants(golden):
  file = golden("l2p", "head_variants")
  config = json.loads(str(file["in/config"]))
  params = unflatten(file, "params/")
  variants = {
    "prompt": {},
    "token": {},
    "gap": {},
    "token+prompt": {},
    "normalized": dict(
      classifier="prompt", norm_pre_logits=True, temperature=0.25
    ),
    "reweight": dict(classifier="prompt"),
  }
  cases = {name.split("/")[1] for name in file if name.startswith("out/")}
  assert cases <= variants.keys()
  for case in cases:
    fields = {"classifier": case, **variants[case]}
    model = vit.build(**TOY, image_size=32, **fields)
    pool = build_prompts(config).clone(reweight=case == "reweight")
    inputs, chosen = pool.apply({"params": params}, file["in/cls_features"])
    image = file["in/images"]
    outputs = model.apply({"params": params}, {"image": image, **inputs})
    check(outputs, chosen, file, case)


def test_prompt_pool(golden):
  file = golden("l2p", "prompt_pool")
  config = json.loads(str(file["in/config"]))
  for case, variant in config["variants"].items():
    prefix, same = variant["prefix"], variant["same_key_value"]
    pool = prompts.Prompts(
      width=config["hidden"],
      num_heads=config["heads"],
      depth=2,
      e_layers=(0, 1),
      e_prefix=prefix,
      pool_size=config["pool"],
      length=config["length"],
      top_k=config["top_k"],
      prompt_key=variant["prompt_key"],
      e_same_key_value=same,
    )
    leaf = "prompt" + prefix * ("_same" if same else "_kv")
    params = {"prompt": file[f"params/{leaf}"], "key": file["params/key"]}
    if variant["embedding_key"] == "cls":
      query = file[f"in/query/{variant['query']}"]
    else:
      query = selection.query_from_patches(
        jnp.asarray(file["in/x_embed"]), variant["embedding_key"]
      )
    inputs, chosen = pool.apply(
      {"params": {"prompt_pool": params}},
      query,
      task=1 if variant["masked"] else None,
      vote_group=len(query) if variant["batchwise"] else None,
    )
    kind = "prefix" if prefix else "tokens"
    batched = np.stack([inputs["prompts"][i][kind] for i in (0, 1)])
    ours = {**chosen, "batched_prompt": batched}
    for name in ours:
      exact = name in ("batched_prompt", "prompt_idx")
      np.testing.assert_allclose(
        ours[name],
        file[f"out/{case}/{name}"],
        rtol=0,
        atol=0 if exact else 1e-6,
        err_msg=f"{case} {name}",
      )


def test_pretrained_and_position_resize(golden, tmp_path):
  np.savez(tmp_path / "vit.npz", **golden("l2p", "vit_tiny_pretrained"))
  file = golden("l2p", "posembed_resize")
  config = json.loads(str(file["in/config"]))

  def load(size):
    model = vit.build(**TOY, image_size=size)
    image = {"image": jnp.zeros((1, size, size, 3))}
    template = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    params = pretrained.load(tmp_path / "vit.npz", template)
    assert not any(leaf.any() for leaf in params["head"].values())
    return model, {**params, "head": unflatten(file, "in/head/")}

  _, params = load(32)
  jax.tree.map(
    np.testing.assert_array_equal, params, unflatten(file, "out/params/")
  )
  for side in (7, 6, 3):
    _, params = load(8 * side)
    np.testing.assert_allclose(
      params["Transformer"]["posembed_input"]["pos_embedding"],
      file[f"out/pos_embedding_{side}x{side}"],
      rtol=0,
      atol=1e-6,
    )
  for case, size in (("native", 32), ("7x7", 56)):
    plain, params = load(size)
    params["prompt_pool"] = unflatten(file, "in/prompt_pool/")
    image = {"image": file[f"in/images_{case}"]}
    outputs = plain.apply({"params": params}, image)
    check(outputs, None, file, case)
    inputs, chosen = build_prompts(config).apply(
      {"params": params}, outputs["features"]
    )
    model = plain.clone(classifier="prompt")
    outputs = model.apply({"params": params}, {**image, **inputs})
    check(outputs, chosen, file, f"prompted_{case}")
