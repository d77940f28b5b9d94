import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from models import MODELS
from models import layers
from models import prompts
from models import selection
from models import vit

# With 10 classes at 224 pixels, by arithmetic on the sizes p, d, m, layers, N:
# 3ppd + 2d + (N+1)d + layers (4dd + 9d + 2dm + m) + 2d + 10d + 10.
PARAMETERS = {
  "ViT-Ti_16": 5_526_346,
  "ViT-S_16": 21_669_514,
  "ViT-B_16": 85_806_346,
  "ViT-B_32": 87_462_922,
  "ViT-B_16_2X2": 94_709_002,
  "ViT-B_16_4X4": 87_511_306,
  "ViT-L_16": 303_311_882,
  "ViT-L_32": 305_520_650,
  "ViT-H_14": 630_777_610,
  "testing": 10_500,
  "small_images": 1_104_458,
  "smoke": 62_314,
}
TOY = dict(
  num_classes=5, image_size=8, patch_size=4, width=8, depth=2, mlp_dim=16,
  num_heads=2,
)  # fmt: skip
POOL = dict(width=8, num_heads=2, depth=2, pool_size=4, length=3, top_k=2)


def shapes(model, size=224):
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  init = functools.partial(model.init, jax.random.key(0))
  return jax.eval_shape(init, {"image": image})["params"]


def test_every_variant_has_a_known_count():
  assert PARAMETERS.keys() == vit.VARIANTS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name):
  tree = shapes(MODELS["vit"](name, num_classes=10))
  count = sum(leaf.size for leaf in jax.tree.leaves(tree))
  assert count == PARAMETERS[name]


def test_parameter_names():
  names = set(traverse_util.flatten_dict(shapes(vit.build(**TOY), 8), sep="/"))
  heads = "MultiHeadDotProductAttention_0"
  block = {
    *(f"LayerNorm_{i}/{leaf}" for i in (0, 1) for leaf in ("scale", "bias")),
    *(
      f"{heads}/{part}/{leaf}"
      for part in ("query", "key", "value", "out")
      for leaf in ("kernel", "bias")
    ),
    *(
      f"MlpBlock_0/Dense_{i}/{leaf}"
      for i in (0, 1)
      for leaf in ("kernel", "bias")
    ),
  }
  assert names == {
    "cls",
    "embedding/kernel",
    "embedding/bias",
    "head/kernel",
    "head/bias",
    "Transformer/posembed_input/pos_embedding",
    "Transformer/encoder_norm/scale",
    "Transformer/encoder_norm/bias",
    *(f"Transformer/encoderblock_{i}/{leaf}" for i in (0, 1) for leaf in block),
  }


def test_published_number_of_trained_parameters():
  # CIFAR-100 presets of the reference, without the head's 76,900.
  vit_b = dict(width=768, num_heads=12, depth=12)
  query = jax.ShapeDtypeStruct((2, 768), jnp.float32)

  def count(**fields):
    model = prompts.Prompts(**vit_b, **fields)
    tree = jax.eval_shape(model.init, jax.random.key(0), query)
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

  assert count(pool_size=10, length=10, top_k=4) == 161_380 - 76_900
  dual = dict(e_layers=[2, 3, 4], e_prefix=True, g_layers=[0, 1], g_length=5)
  assert count(pool_size=10, length=5, top_k=1, **dual) == 407_140 - 76_900


def test_initial_values():
  image = {"image": jnp.ones((1, 8, 8, 3))}
  params = jax.jit(vit.build(**TOY).init)(jax.random.key(0), image)["params"]
  for zero in (params["cls"], *params["head"].values()):
    assert not zero.any()
  position = params["Transformer"]["posembed_input"]["pos_embedding"]
  assert 0.01 < position.std() < 0.03
  pool = jax.jit(prompts.Prompts(**POOL).init)(
    jax.random.key(0), jnp.ones((2, 8))
  )
  for leaf in jax.tree.leaves(pool):
    assert 0 <= leaf.min() and 0.009 < leaf.max() < 0.01
  other = prompts.Prompts(**POOL, prompt_init="normal", key_init="zero")
  pool = jax.jit(other.init)(jax.random.key(0), jnp.ones((2, 8)))["params"]
  assert pool["prompt_pool"]["prompt"].min() < 0
  assert not pool["prompt_pool"]["key"].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_forward_and_backward_run(dtype):
  # Runs, not only compiles: some bfloat16 products fail at run time on CPU.
  model = vit.build(
    **TOY, dtype=dtype, classifier="prompt", dropout=0.1, attention_dropout=0.1
  )
  pool = prompts.Prompts(
    **POOL, e_layers=[0, 1], g_layers=[0, 1], g_length=2, reweight=True
  )
  image = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
  query = jax.random.normal(jax.random.key(1), (4, 8))
  plain = model.clone(classifier="token")
  params = {
    **jax.jit(plain.init)(jax.random.key(2), {"image": image})["params"],
    **jax.jit(pool.init)(jax.random.key(3), query)["params"],
  }
  params["head"]["kernel"] = jax.random.normal(jax.random.key(5), (8, 5))

  @jax.jit
  def loss(params):
    inputs, _ = jax.jit(pool.apply)({"params": params}, query)
    outputs = model.apply(
      {"params": params},
      {"image": image, **inputs},
      train=True,
      rngs={"dropout": jax.random.key(4)},
    )
    assert all(leaf.dtype == jnp.float32 for leaf in outputs.values())
    return jnp.mean(outputs["logits"] ** 2), outputs

  (_, outputs), grads = jax.value_and_grad(loss, has_aux=True)(params)
  inputs, _ = jax.jit(pool.apply)({"params": params}, query)
  tokens = model.apply(
    {"params": params}, image, inputs["prompts"], method="encode"
  )
  assert tokens.shape == (4, 2 * 6 + 1 + 4, 8)
  for leaf in jax.tree.leaves(grads):
    assert leaf.dtype == jnp.float32 and jnp.isfinite(leaf).all()
  assert grads["prompt_pool"]["prompt"].any(axis=(1, 2, 3)).all()
  assert grads["prefix"].any(axis=(1, 2, 3, 4)).all()


def test_compute_type_is_apart_from_parameter_type():
  image = {"image": jax.random.normal(jax.random.key(0), (2, 8, 8, 3))}
  single = vit.build(**TOY)
  variables = jax.jit(single.init)(jax.random.key(1), image)
  half = single.clone(dtype="bfloat16")
  exact = jax.jit(single.apply)(variables, image)["features"]
  rough = jax.jit(half.apply)(variables, image)["features"]
  assert 0 < jnp.abs(exact - rough).max() < 0.1
  stored = jax.jit(single.clone(param_dtype="bfloat16").init)(
    jax.random.key(1), image
  )
  assert {x.dtype for x in jax.tree.leaves(stored)} == {jnp.dtype("bfloat16")}
  # Norms, features and head are float32 whatever the two types are.
  outputs = jax.jit(half.clone(param_dtype="bfloat16").apply)(stored, image)
  assert {x.dtype for x in outputs.values()} == {jnp.dtype("float32")}


def test_dropout_needs_train():
  model = vit.build(**TOY, dropout=0.5)
  image = {"image": jax.random.normal(jax.random.key(0), (2, 8, 8, 3))}
  variables = jax.jit(model.init)(jax.random.key(1), image)
  still = jax.jit(model.apply)(variables, image)["features"]
  np.testing.assert_array_equal(
    still, jax.jit(model.apply)(variables, image)["features"]
  )
  moved = model.apply(
    variables, image, train=True, rngs={"dropout": jax.random.key(2)}
  )["features"]
  assert jnp.abs(moved - still).max() > 1e-2


def test_dropout_sites():
  seen = []

  def spy(call, args, kwargs, context):
    if isinstance(context.module, nn.Dropout):
      seen.append((context.module.rate, kwargs["deterministic"]))
    return call(*args, **kwargs)

  model = vit.build(**TOY, dropout=0.5, attention_dropout=0.1)
  image = {"image": jnp.ones((1, 8, 8, 3))}
  variables = jax.jit(model.init)(jax.random.key(0), image)
  for train in (True, False):
    with nn.intercept_methods(spy):
      model.apply(
        variables, image, train=train, rngs={"dropout": jax.random.key(1)}
      )
    # Positions; then attention weights, attention, both layers of the MLP.
    rates = [0.5] + [0.1, 0.5, 0.5, 0.5] * TOY["depth"]
    assert seen == [(rate, not train) for rate in rates]
    seen.clear()


def test_dense_class_serves_every_projection():
  seen = []

  class Spy(nn.DenseGeneral):
    def __call__(self, inputs):
      seen.append(self.name)
      return super().__call__(inputs)

  shapes(vit.build(**TOY, dense=Spy), 8)
  block = ["query", "key", "value", "out", "Dense_0", "Dense_1"]
  assert seen == block * TOY["depth"]


def test_embed_is_row_by_row():
  model = vit.build(**TOY)
  image = jnp.zeros((1, 8, 8, 3)).at[:, 0, 7].set(1.0)  # top right patch
  variables = jax.jit(model.init)(jax.random.key(0), {"image": image})
  patches = model.apply(variables, image, method="embed")
  assert patches.shape == (1, 4, 8)
  np.testing.assert_array_equal(patches.any(axis=2), [[0, 1, 0, 0]])


def test_reweight_weights_the_prompt_tokens():
  model = vit.build(**TOY, classifier="prompt")
  image = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  tokens = jax.random.normal(jax.random.key(1), (2, 3, 8))
  inputs = {"image": image, "prompts": {0: {"tokens": tokens}}}
  variables = jax.jit(model.init)(jax.random.key(2), inputs)
  first = {**inputs, "reweight": jnp.array([1e4, 0.0, 0.0])}
  outputs = jax.jit(model.apply)(variables, first)
  tokens = model.apply(variables, image, inputs["prompts"], method="encode")
  np.testing.assert_allclose(outputs["features"], tokens[:, 0], rtol=1e-5)


def test_norm_of_a_zero_feature_has_a_gradient():
  model = vit.build(**TOY, norm_pre_logits=True)
  image = {"image": jnp.ones((1, 8, 8, 3))}
  params = jax.jit(model.init)(jax.random.key(0), image)["params"]
  params = jax.tree.map(jnp.zeros_like, params)
  grads = jax.grad(
    lambda p: jax.jit(model.apply)({"params": p}, image)["logits"].sum()
  )(params)
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(image_size=10), "image_size=10 .* patch_size=4.* 8 or 12"),
    (dict(num_heads=3), "width=8 .* num_heads=3"),
    (dict(classifier="map"), "Unknown classifier 'map'"),
    (dict(gelu="quick"), "Unknown gelu 'quick'"),
  ],
)
def test_bad_vit(fields, message):
  with pytest.raises(ValueError, match=message):
    vit.build(**{**TOY, **fields})


def test_unknown_variant_names_the_nearest():
  with pytest.raises(ValueError, match="Did you mean 'ViT-B_16'"):
    vit.build("ViT-B16", num_classes=2)


@pytest.mark.parametrize(
  "fields, inputs, message",
  [
    ({}, {"image": np.zeros((1, 8, 12, 3))}, r"have shape \(1, 8, 12, 3\)"),
    (dict(classifier="prompt"), {}, "got none"),
    ({}, {"prompts": {2: {"tokens": np.zeros((1, 1, 8))}}}, r"layers \[2\]"),
    (
      dict(classifier="prompt"),
      {
        "prompts": {0: {"tokens": np.zeros((1, 2, 8))}},
        "reweight": np.zeros(3),
      },
      "for 2 prompt tokens",
    ),
  ],
)
def test_bad_inputs(fields, inputs, message):
  model = vit.build(**TOY, **fields)
  image = {"image": np.zeros((1, 8, 8, 3), np.float32)}
  variables = jax.jit(model.init)(jax.random.key(0), image)
  with pytest.raises(ValueError, match=message):
    jax.jit(model.apply)(variables, {**image, **inputs})


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(e_layers=0), r"e_layers=0 must be a list: write e_layers=\[0\]"),
    (dict(g_layers=1), "g_layers=1 must be a list"),
    (dict(e_layers=[2]), "from 0 to 1"),
    (dict(g_layers=[-1]), "from 0 to 1"),
    (dict(e_layers=[0, 0]), "distinct"),
    (dict(top_k=5), "top_k=5 .* pool_size=4"),
    (dict(pool_size=0), "at least 1"),
    (dict(g_layers=[0], g_length=0), "g_length=0"),
    (dict(prompt_init="zeros"), "prompt_init='zeros'"),
    (dict(key_init="normal"), "key_init='normal'"),
    (dict(prompt_key=False, e_prefix=True), "prompt_key=True"),
    (dict(reweight=True, e_prefix=True), "reweight"),
    (dict(num_heads=3), "num_heads=3"),
  ],
)
def test_bad_prompts(fields, message):
  with pytest.raises(ValueError, match=message):
    prompts.Prompts(**{**POOL, **fields})


def test_unknown_query():
  with pytest.raises(ValueError, match="Unknown query 'min'"):
    selection.query_from_patches(jnp.ones((1, 2, 3)), "min")


def test_prefix_of_other_heads_is_refused():
  attention = layers.Attention(num_heads=2, head_dim=3)
  x, prefix = jnp.zeros((1, 4, 8)), jnp.zeros((2, 1, 5, 2, 4))
  with pytest.raises(ValueError, match=r"2, 4\), .* must end in \(2, 3"):
    jax.jit(attention.init)(jax.random.key(0), x, prefix)
  fits = prefix[..., :3]
  y, _ = attention.init_with_output(jax.random.key(0), x, fits)
  assert y.shape == x.shape
