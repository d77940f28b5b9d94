import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from libml.devices import sharding
from models import encoder
from models import kernels
from models import prompts
from models import vit

TOY = dict(
  num_classes=5, image_size=8, patch_size=4, width=8, depth=3, mlp_dim=16,
  num_heads=2,
)  # fmt: skip
# A layer's products: [..., axes] by [axes, ...].
DENSE = {
  "mlp": ((2, 5, 8), (8, 6), 1),
  "query": ((2, 5, 8), (8, 2, 4), 1),
  "out": ((2, 5, 2, 4), (2, 4, 8), 2),
  "head": ((3, 8), (8, 5), 1),
}


def draw(*shape, seed=0, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def pulled(fn, *args):
  """Returns fn's value and its gradients against a fixed cotangent, run."""

  @jax.jit
  def both(*args):
    value, back = jax.vjp(fn, *args)
    return value, back(draw(*value.shape, seed=9, dtype=value.dtype))

  return both(*args)


def close(got, wanted, *, rtol):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    assert a.shape == b.shape
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    assert np.abs(a - b).max() <= rtol * max(np.abs(b).max(), 1e-6)


def dims(axes, lhs_ndim):
  contract = tuple(range(lhs_ndim - axes, lhs_ndim)), tuple(range(axes))
  return contract, ((), ())


@pytest.mark.parametrize("layer", DENSE)
@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-6), ("bfloat16", 0.02)])
def test_dense_product(layer, dtype, rtol):
  lhs, rhs, axes = DENSE[layer]
  args = draw(*lhs, dtype=dtype), draw(*rhs, seed=1, dtype=dtype)
  how = dimension_numbers = dims(axes, len(lhs))
  got = pulled(lambda x, w: kernels.dot_general(x, w, how), *args)
  exact = pulled(
    lambda x, w: jax.lax.dot_general(x, w, dimension_numbers),
    *(x.astype(jnp.float32) for x in args),
  )
  assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype(dtype)}
  close(got, exact, rtol=rtol)


@pytest.mark.parametrize("wrap", [jax.vmap, jax.checkpoint])
def test_dense_product_under_transforms(wrap):
  x, w = draw(3, 2, 5, 8, dtype="bfloat16"), draw(8, 6, dtype="bfloat16")

  def loss(w, x):
    y = kernels.dot_general(x, w, dims(1, x.ndim))
    return jnp.sum(y.astype(jnp.float32) ** 2)

  if wrap is jax.vmap:  # a gradient of the weights for each example
    got = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(w, x)
    wanted = jnp.stack([jax.grad(loss)(w, row) for row in x])
  else:
    got = jax.jit(jax.grad(wrap(loss)))(w, x)
    wanted = jax.grad(loss)(w, x)
  close(got, wanted, rtol=0.02)


def test_batched_products_go_the_plain_way():
  # With a float32 result they compile and fail at run time on CPU.
  x = draw(2, 5, 4, dtype="bfloat16")
  batched = (((2,), (2,)), ((0,), (0,)))
  text = str(jax.make_jaxpr(lambda x: kernels.dot_general(x, x, batched))(x))
  assert "custom_vjp" not in text
  close(
    kernels.dot_general(x, x, batched),
    jnp.einsum("btk,bsk->bts", x, x),
    rtol=1e-6,
  )


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a CPU's detour")
def test_bfloat16_products_ask_for_float32_on_cpu():
  def loss(x, w):
    y = kernels.dot_general(x, w, dims(1, x.ndim))
    return jnp.sum(y.astype(jnp.float32))

  args = draw(2, 5, 8, dtype="bfloat16"), draw(8, 6, dtype="bfloat16")
  text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(*args))
  assert text.count("preferred_element_type=float32") == 3
  assert text.count("dot_general") == 3


@pytest.mark.parametrize("approximate", [True, False])
@pytest.mark.parametrize("dtype, rtol", [("float32", 2e-6), ("bfloat16", 0.01)])
def test_gelu(approximate, dtype, rtol):
  x = (3 * draw(4, 50)).astype(dtype)
  plain = functools.partial(nn.gelu, approximate=approximate)
  got = pulled(lambda x: kernels.gelu(x, approximate), x)
  assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(dtype)}
  close(got, pulled(plain, x.astype(jnp.float32)), rtol=rtol)


def test_gelu_far_out():
  x = jnp.array([-1e4, -30.0, 0.0, 30.0, 1e4])
  for approximate in (True, False):
    gelu = functools.partial(kernels.gelu, approximate=approximate)
    value, back = jax.vjp(gelu, x)
    (slope,) = back(jnp.ones(5))
    np.testing.assert_allclose(value, [0, 0, 0, 30, 1e4], atol=1e-6)
    np.testing.assert_allclose(slope, [0, 0, 0.5, 1, 1], atol=1e-6)


@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("bfloat16", 0.02)])
def test_layer_norm(dtype, rtol):
  x = (2 + draw(2, 5, 16)).astype(dtype)
  scale, bias = 1 + 0.1 * draw(16, seed=1), draw(16, seed=2)
  plain = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32)
  wanted = pulled(
    lambda x, scale, bias: plain.apply(
      {"params": {"scale": scale, "bias": bias}}, x
    ),
    x.astype(jnp.float32),
    scale,
    bias,
  )
  got = pulled(
    lambda *args: kernels.layer_norm(*args, 1e-6, jnp.float32), x, scale, bias
  )
  close(got, wanted, rtol=rtol)
  assert got[1][0].dtype == jnp.dtype(dtype)


@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("bfloat16", 0.03)])
def test_attention(dtype, rtol):
  query = draw(2, 3, 2, 4, dtype=dtype)
  key, value = (draw(2, 7, 2, 4, seed=s, dtype=dtype) for s in (1, 2))

  def plain(query, key, value):
    weights = kernels.attention_weights(query, key)
    return jnp.einsum("bhts,bshk->bthk", weights, value)

  exact = pulled(plain, *(x.astype(jnp.float32) for x in (query, key, value)))
  got = pulled(kernels.attention, query, key, value)
  assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(dtype)}
  close(got, exact, rtol=rtol)


def test_attention_sums_to_one():
  query, key = 50 * draw(1, 3, 2, 4), 50 * draw(1, 7, 2, 4, seed=1)
  out = kernels.attention(query, key, jnp.ones((1, 7, 2, 4)))
  np.testing.assert_allclose(out, 1.0, rtol=1e-6)


def test_patch_embedding_is_a_convolution():
  image = draw(2, 8, 12, 3)
  embed = encoder.PatchEmbedding(width=6, patch_size=4)
  conv = nn.Conv(6, (4, 4), strides=(4, 4), padding="VALID")
  params = conv.init(jax.random.key(1), image)
  shapes = functools.partial(jax.tree.map, jnp.shape)
  assert shapes(embed.init(jax.random.key(1), image)) == shapes(params)
  wanted = conv.apply(params, image).reshape(2, 6, 6)
  np.testing.assert_allclose(embed.apply(params, image), wanted, atol=1e-5)


@pytest.mark.parametrize("classifier", vit.CLASSIFIERS)
def test_last_layer_makes_only_the_rows_that_are_read(classifier):
  model = vit.build(**TOY, classifier=classifier)
  image = draw(2, 8, 8, 3)
  given = {0: {"tokens": draw(2, 3, 8, seed=1)}, 1: {}}
  inputs = {"image": image, "prompts": given}
  variables = model.init(jax.random.key(2), inputs)
  features = model.apply(variables, inputs)["features"]
  tokens = model.apply(variables, image, given, method="encode")
  assert tokens.shape == (2, 3 + 1 + 4, 8)
  read = {"token": slice(3, 4), "gap": slice(None), "prompt": slice(3),
          "token+prompt": slice(4)}[classifier]  # fmt: skip
  np.testing.assert_allclose(
    features, tokens[:, read].mean(axis=1), rtol=1e-4, atol=1e-5
  )


L2P = dict(e_layers=[0, 2])
DUALPROMPT = dict(e_layers=[1, 2], e_prefix=True, g_layers=[0], top_k=1)
STEPS = {
  "erf": (dict(gelu="erf", classifier="gap", dropout=0.1), DUALPROMPT),
  "dropout": (dict(dropout=0.1, attention_dropout=0.1), L2P),
  "stored in bfloat16": (
    dict(
      param_dtype="bfloat16",
      norm_pre_logits=True,
      classifier="token+prompt",
    ),
    L2P,
  ),
}


@pytest.mark.parametrize("fields, prompting", STEPS.values(), ids=STEPS)
def test_bfloat16_steps_run_on_one_and_two_devices(fields, prompting):
  # Run, not only compiled, all gradients made: some products fail then.
  model = vit.build(**TOY, **fields, dtype="bfloat16")
  image, query = draw(4, 8, 8, 3), draw(4, 8, seed=1)
  sizes = dict(pool_size=4, length=3, top_k=2, g_length=2, **vit_sizes())
  pool = prompts.Prompts(**{**sizes, **prompting})
  params = jax.jit(model.init)(jax.random.key(2), {"image": image})["params"]
  params |= jax.jit(pool.init)(jax.random.key(3), query)["params"]
  params["head"]["kernel"] = draw(8, 5, dtype=params["head"]["kernel"].dtype)

  def loss(params, image, query):
    inputs, _ = pool.apply({"params": params}, query)
    outputs = model.apply(
      {"params": params},
      {"image": image, **inputs},
      train=True,
      rngs={"dropout": jax.random.key(4)},
    )
    return jnp.mean(outputs["logits"] ** 2)

  step = jax.jit(jax.value_and_grad(loss))
  alone = step(params, image, query)
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(alone))
  mesh = sharding.make_mesh(2)
  rows = NamedSharding(mesh, P("data"))
  shared = step(
    jax.device_put(params, sharding.replicated(mesh)),
    *jax.device_put((image, query), rows),
  )
  np.testing.assert_allclose(shared[0], alone[0], rtol=0.02)
  # As one vector: the gradient of the keys' bias is rounding noise.
  flat = [
    np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])
    for grads in (alone[1], shared[1])
  ]
  assert np.linalg.norm(flat[0] - flat[1]) < 0.02 * np.linalg.norm(flat[0])


def vit_sizes():
  return {name: TOY[name] for name in ("width", "num_heads", "depth")}
