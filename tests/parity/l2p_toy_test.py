"""The models against the figures printed in the specification, G1 to G5."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from models import prompts
from models import selection
from models import vit

# The toy of the specification's section 12: leaf `id` holds 0.3 sin(1.7 id +
# 0.9 i), norm scales one more.
TINY = dict(
  num_classes=6,
  image_size=8,
  patch_size=4,
  width=8,
  depth=3,
  mlp_dim=16,
  num_heads=2,
)


def wave(index, shape, offset=0.0):
  i = np.arange(np.prod(shape))
  value = offset + 0.3 * np.sin(1.7 * index + 0.9 * i)
  return value.reshape(shape).astype(np.float32)


def tiny_params(pool_size, prompt_shape):
  block = "Transformer/encoderblock_{}/"
  attention = block + "MultiHeadDotProductAttention_0/"
  dense = block + "MlpBlock_0/Dense_{}/"
  names = [
    "embedding/kernel",
    "embedding/bias",
    "cls",
    "Transformer/posembed_input/pos_embedding",
  ]
  for i in range(3):
    names += [block.format(i) + f"LayerNorm_0/{x}" for x in ("scale", "bias")]
    for part in ("query", "key", "value", "out"):
      names += [attention.format(i) + f"{part}/{x}" for x in ("kernel", "bias")]
    names += [block.format(i) + f"LayerNorm_1/{x}" for x in ("scale", "bias")]
    for j in (0, 1):
      names += [dense.format(i, j) + x for x in ("kernel", "bias")]
  names += [f"Transformer/encoder_norm/{x}" for x in ("scale", "bias")]
  names += ["head/kernel", "head/bias"]
  model = vit.build(**TINY)
  image = {"image": jnp.zeros((1, 8, 8, 3))}
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  shapes = traverse_util.flatten_dict(shapes, sep="/")
  assert set(names) == set(shapes)
  flat = {
    name: wave(i, shapes[name].shape, offset=float(name.endswith("scale")))
    for i, name in enumerate(names)
  }
  flat["prompt_pool/key"] = wave(56, (pool_size, 8))
  flat["prompt_pool/prompt"] = wave(57, prompt_shape)
  flat["prefix"] = wave(58, (3, 2, 2, 2, 4))
  return traverse_util.unflatten_dict(flat, sep="/")


def tiny_image():
  n = np.arange(4 * 8 * 8 * 3)
  value = 0.5 + 0.5 * np.sin(0.013 * n**2 + 0.4 * (n // 192))
  return value.reshape(4, 8, 8, 3).astype(np.float32)


def tiny_l2p():
  pool = prompts.Prompts(
    width=8, num_heads=2, depth=3, pool_size=5, length=2, top_k=2
  )
  return pool, tiny_params(5, (1, 5, 2, 8)), "prompt"


def tiny_dualprompt(g_layers):
  pool = prompts.Prompts(
    width=8,
    num_heads=2,
    depth=3,
    e_layers=(1, 2),
    e_prefix=True,
    pool_size=3,
    length=2,
    top_k=1,
    g_layers=g_layers,
    g_length=2,
  )
  return pool, tiny_params(3, (2, 2, 3, 2, 2, 4)), "token"


def tiny_forward(built, query=None, **kwargs):
  pool, params, classifier = built
  image = {"image": tiny_image()}
  plain = vit.build(**TINY)
  if query is None:
    query = plain.apply({"params": params}, image)["features"]
  inputs, chosen = pool.apply({"params": params}, query, **kwargs)
  model = plain.clone(classifier=classifier)
  outputs = model.apply({"params": params}, {**image, **inputs})
  return query, chosen, outputs["logits"]


def near(ours, theirs):
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_g1_l2p():
  query, chosen, logits = tiny_forward(tiny_l2p(), vote_group=4)
  near(
    query[0],
    [-1.050974, -1.105361, 0.022664, 0.95078]
    + [0.982165, 0.619195, -0.108072, -1.064223],
  )
  near(chosen["sim"][0], [-0.95873, -0.820165, -0.072569, 0.799171, 0.957186])
  near(
    chosen["sim"][1:, 3:],
    [[0.577515, 0.977414], [0.795518, 0.958552], [0.659236, 0.98185]],
  )
  np.testing.assert_array_equal(chosen["prompt_idx"], [[3, 4]] * 4)
  near(chosen["reduce_sim"], 1.676611)
  near(
    logits,
    [
      [-0.375346, 0.566157, 1.079203, 0.77553, -0.115049, -0.918561],
      [-0.52287, 0.303925, 0.900716, 0.815862, 0.113581, -0.674657],
      [-0.290823, 0.610244, 1.049491, 0.694503, -0.18607, -0.92583],
      [-0.569255, 0.423733, 1.096048, 0.938896, 0.071206, -0.850371],
    ],
  )


def test_g2_dualprompt():
  _, chosen, logits = tiny_forward(tiny_dualprompt((0,)), vote_group=4)
  assert (np.asarray(chosen["prompt_idx"]) == 2).all()
  near(chosen["reduce_sim"], -0.199269)
  near(
    logits[:2],
    [
      [0.442325, 1.492305, 1.412938, 0.264288, -1.08437, -1.612398],
      [0.744793, 1.496666, 1.115892, -0.109367, -1.251859, -1.446969],
    ],
  )


def routed(built):
  key = built[1]["prompt_pool"]["key"]
  return tiny_forward(built, query=key[np.array([0, 1, 2, 0])])


def test_g3_dualprompt():
  _, chosen, logits = routed(tiny_dualprompt((0,)))
  np.testing.assert_array_equal(chosen["prompt_idx"], [[0], [1], [2], [0]])
  near(chosen["reduce_sim"], 1.0)
  near(
    logits,
    [
      [0.449015, 1.493396, 1.407604, 0.256566, -1.088636, -1.60998],
      [0.761945, 1.493434, 1.094722, -0.132454, -1.259391, -1.433246],
      [0.457469, 1.49472, 1.400798, 0.246779, -1.093997, -1.606858],
      [0.675348, 1.505177, 1.195918, -0.018387, -1.218778, -1.496822],
    ],
  )


def test_g3_shared_layer():
  _, _, logits = routed(tiny_dualprompt((0, 1)))
  near(
    logits[:2],
    [
      [0.444763, 1.492707, 1.411, 0.261476, -1.085927, -1.611523],
      [0.748918, 1.495933, 1.110855, -0.114895, -1.253695, -1.443724],
    ],
  )


def test_g3_l2p():
  _, chosen, logits = routed(tiny_l2p())
  np.testing.assert_array_equal(
    chosen["prompt_idx"], [[0, 1], [1, 0], [2, 1], [0, 1]]
  )
  near(chosen["reduce_sim"], 1.663320)
  near(
    logits,
    [
      [0.193475, 1.027706, 1.08419, 0.32018, -0.686135, -1.173197],
      [0.222301, 0.716944, 0.669018, 0.114793, -0.526305, -0.769106],
      [-0.740447, -0.182877, 0.513091, 0.820762, 0.507297, -0.190081],
      [0.054795, 0.810694, 0.953076, 0.374189, -0.487877, -0.980727],
    ],
  )


def test_g5_selection():
  query = jnp.array(
    [[0.9, 0.5, 0.1, 0], [0.1, 0.9, 0.5, 0], [0, 0.2, 0.9, 0.5]]
  )
  fourth = jnp.concatenate([query, jnp.array([[0.5, 0, 0, 0.9]])])
  instance = [[0, 1], [1, 2], [2, 3], [3, 0]]
  for rows, group, idx, reduce_sim in (
    (query, None, instance[:3], 1.347237),
    (query, 3, [[1, 2]] * 3, 0.994094),
    (fourth, None, instance, 1.350378),
    (fourth, 4, [[0, 1]] * 4, 0.749126),
  ):
    sim = selection.normalize(rows)  # the keys are the unit matrix
    ours = selection.select(sim, 2, vote_group=group)
    np.testing.assert_array_equal(ours, idx)
    near(selection.mean_similarity(sim, ours), reduce_sim)
