"""The Face Transformer and its heads: sizes, first values, bad input."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from libml import trees
from libml.problems import PROBLEMS
from models import MODELS
from models import face_vit
from models import heads
from models import lora

FFN = {"layers": r".*/MlpBlock_0/Dense_[01]", "rank": 8, "alpha": 1.0}
ATTENTION = {"layers": r".*/(query|key|value)", "rank": 8, "alpha": 1.0}
BATCH = {
  "image": jax.random.uniform(jax.random.key(0), (4, 8, 8, 3)),
  "label": jnp.array([0, 1, 2, 4]),
}
MARGINS = sorted({"cosface", "arcface", "arcface_easy"})


def smoke(**fields):
  sizes = {"num_classes": 5, "image_size": 8, "depth": 2}
  return face_vit.build("smoke", **{**sizes, **fields})


def shapes(model):
  size = model.image_size
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  init = functools.partial(model.init, jax.random.key(0))
  return jax.eval_shape(init, {"image": image})["params"]


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  "variant, parameters",
  [
    ("P8S8_6", 19_157_504),
    ("P8S8_10", 31_760_896),
    ("P8S8_12", 38_062_592),
    ("P8S8_18", 56_967_680),
    ("P12S8_6", 19_157_504 + 512 * 3 * (144 - 64)),
  ],
)
def test_published_number_of_parameters(variant, parameters):
  model = MODELS["face_vit"](variant=variant, num_classes=100)
  tree = shapes(model)
  assert count(tree) == parameters
  assert model.num_patches == 196
  assert tree["Transformer"]["posembed_input"]["pos_embedding"].shape == (
    1,
    197,
    512,
  )


@pytest.mark.parametrize(
  "name, fields, adapters, parameters, share",
  [
    ("face_vit", {"variant": "P8S8_6", "lora": FFN}, 245_760, 19_157_504,
     1.2828),
    ("face_vit", {"variant": "P8S8_6", "lora": ATTENTION}, 147_456, 19_157_504,
     None),
    ("vit", {"variant": "ViT-B_16", "lora": FFN}, 737_280, 85_875_556, 0.8585),
  ],
)  # fmt: skip
def test_published_number_of_trained_parameters(
  name, fields, adapters, parameters, share
):
  model = MODELS[name](num_classes=100, **fields)
  base, added = lora.split(shapes(model))
  assert (count(added), count(base)) == (adapters, parameters)
  assert model.lora_scale == 0.125
  if share is not None:
    assert round(100 * adapters / parameters, 4) == share


def test_first_values():
  model = face_vit.build("P8S8_6", num_classes=100, depth=1, lora=FFN)
  image = {"image": jnp.zeros((1, 112, 112, 3))}
  params = trees.flatten(model.init(jax.random.key(0), image)["params"])
  block = "Transformer/encoderblock_0"
  attention = f"{block}/MultiHeadDotProductAttention_0"
  bounds = {
    "embedding": 192,
    **{f"{attention}/{part}": 512 for part in ("query", "key", "value", "out")},
    f"{block}/MlpBlock_0/Dense_0": 512,
    f"{block}/MlpBlock_0/Dense_1": 2048,
  }
  for name, fan_in in bounds.items():
    for leaf in ("kernel", "bias"):
      if leaf == "bias" and name.split("/")[-1] in ("query", "key", "value"):
        assert f"{name}/bias" not in params
        continue
      values = params[f"{name}/{leaf}"]
      bound = 1 / math.sqrt(fan_in)
      assert 0.97 * bound < jnp.abs(values).max() <= bound, name
      assert abs(values.mean()) < 0.1 * bound
  for name in ("cls", "Transformer/posembed_input/pos_embedding"):
    assert 0.9 < params[name].std() < 1.1
  bound = math.sqrt(6 / (512 + 100))
  assert 0.97 * bound < jnp.abs(params["head/kernel"]).max() <= bound
  lora_a = params[f"{block}/MlpBlock_0/Dense_1/lora_a"]
  assert 0.97 / math.sqrt(2048) < jnp.abs(lora_a).max() <= 1 / math.sqrt(2048)


def test_heads_of_their_own_width():
  model = smoke(width=10, num_heads=3, head_dim=6, depth=1)
  params = model.init(jax.random.key(0), BATCH)["params"]
  block = params["Transformer"]["encoderblock_0"]
  attention = block["MultiHeadDotProductAttention_0"]
  for part in ("query", "key", "value"):
    assert attention[part]["kernel"].shape == (10, 3, 6)
  assert attention["out"]["kernel"].shape == (3, 6, 10)
  # torch's layer has 3 * 6 inputs.
  bound = 1 / math.sqrt(18)
  assert 0.9 * bound < jnp.abs(attention["out"]["kernel"]).max() <= bound
  assert model.apply({"params": params}, BATCH)["logits"].shape == (4, 5)


@pytest.mark.parametrize("size, patches", [(8, 4), (16, 16)])
def test_smoke_model_takes_small_images(size, patches):
  model = smoke(image_size=size)
  image = {"image": jnp.ones((2, size, size, 3))}
  outputs = model.apply(model.init(jax.random.key(0), image), image)
  assert model.num_patches == patches
  assert outputs["features"].shape == (2, 16)
  assert outputs["logits"].shape == (2, 5)


@pytest.mark.parametrize(
  "head, sliding, dtype",
  [
    ("cosface", {}, "float32"),
    ("arcface", {"patch_size": 6, "padding": 1}, "bfloat16"),
    ("softmax", {}, "bfloat16"),
    ("sface", {"patch_size": 6, "padding": 1}, "float32"),
  ],
)
def test_forward_and_backward_run(head, sliding, dtype):
  # Runs, not only compiles: some bfloat16 products fail at run time on CPU.
  adapters = FFN | {"rank": 2}
  model = smoke(dtype=dtype, head=head, lora=adapters, **sliding)
  params = jax.jit(model.init)(jax.random.key(1), BATCH)["params"]
  problem = PROBLEMS["classification"]()

  @jax.jit
  def loss(params):
    outputs = model.apply(
      {"params": params},
      BATCH,
      train=True,
      rngs={"dropout": jax.random.key(2)},
    )
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}
    return problem.loss(outputs, BATCH)

  (value, parts), grads = jax.value_and_grad(loss, has_aux=True)(params)
  assert jnp.isfinite(value)
  own = head == "sface"
  assert ("head_loss" in parts, "cross_entropy" in parts) == (own, not own)
  for name, leaf in trees.flatten(grads).items():
    assert leaf.dtype == jnp.float32 and jnp.isfinite(leaf).all(), name
    if not name.endswith("lora_a"):  # B starts at 0
      assert leaf.any(), name


def test_dropout_needs_train():
  model = smoke()
  variables = model.init(jax.random.key(1), BATCH)
  still = model.apply(variables, BATCH)["features"]
  moved = model.apply(
    variables, BATCH, train=True, rngs={"dropout": jax.random.key(2)}
  )["features"]
  assert jnp.abs(moved - still).max() > 1e-2


@pytest.mark.parametrize("head", MARGINS)
def test_margin_sits_on_the_label_alone(head):
  model = smoke(head=head, scale=10.0, margin=0.2)
  variables = model.init(jax.random.key(1), BATCH)
  outputs = model.apply(variables, BATCH)
  plain = outputs["readings"]["_no_margin"]
  assert jnp.abs(plain).max() <= 10.0
  changed = np.asarray(outputs["logits"] != plain)
  rows = np.arange(4)
  assert (changed.sum(axis=1) <= 1).all()
  if head == "arcface_easy":  # no margin above a right angle
    positive = np.asarray(plain[rows, BATCH["label"]] > 0)
    np.testing.assert_array_equal(changed.any(axis=1), positive)
  else:
    assert changed[rows, BATCH["label"]].all()
    assert (outputs["logits"] <= plain).all()
  unlabelled = model.apply(variables, {"image": BATCH["image"]})
  np.testing.assert_array_equal(unlabelled["logits"], plain)


def test_margin_decides_a_tie():
  # cos_y = cos_j: the other class with the margin, the lower one without.
  head = heads.build("cosface", num_classes=2)
  params = {"kernel": jnp.array([[1.0, 1.0], [0.0, 0.0]])}
  outputs = head.apply(
    {"params": params}, jnp.array([[3.0, 0.0]]), jnp.array([0])
  )
  assert jnp.argmax(outputs["logits"]) == 1
  assert outputs["readings"]["_no_margin"][0].tolist() == [64.0, 64.0]


@pytest.mark.parametrize("head", sorted(heads.HEADS))
def test_gradients_are_finite_where_angles_end(head):
  # An embedding along its column, one against it, one of zeros.
  module = heads.build(head, num_classes=2)
  kernel = jnp.array([[1.0, 0.0], [0.0, 1.0]])
  params = {"kernel": kernel}
  if head == "softmax":
    params["bias"] = jnp.zeros(2)
  x = jnp.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 0.0]])

  def loss(params, x):
    outputs = module.apply({"params": params}, x, jnp.zeros(3, jnp.int32))
    return PROBLEMS["classification"]().loss(
      outputs, {"label": jnp.zeros(3, jnp.int32)}
    )[0]

  value, grads = jax.value_and_grad(loss, argnums=(0, 1))(params, x)
  assert jnp.isfinite(value)
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_own_loss_is_measured():
  outputs = {"logits": jnp.zeros((3, 2)), "loss": jnp.array([1.0, 2.0, 7.0])}
  batch = {
    "label": jnp.array([0, 1, 0]),
    "mask": jnp.array([True, True, False]),
    "allowed": jnp.ones(2, bool),
  }
  problem = PROBLEMS["classification"]()
  assert problem.summarize([problem.measure(outputs, batch)])["loss"] == 1.5
  assert problem.loss(outputs, batch)[1]["head_loss"] == pytest.approx(10 / 3)


@pytest.mark.parametrize("head", sorted(set(heads.HEADS) - {"softmax"}))
def test_margin_heads_need_class_ids(head):
  model = smoke(head=head)
  variables = model.init(jax.random.key(0), BATCH)
  image = {"image": BATCH["image"]}
  model.apply(variables, image)  # a new face has no label
  rngs = {"dropout": jax.random.key(0)}
  with pytest.raises(ValueError, match="got none: give inputs"):
    model.apply(variables, image, train=True, rngs=rngs)
  soft = {**image, "label": jnp.full((4, 5), 0.2)}
  with pytest.raises(ValueError, match=r"\(4, 5\).* turn off mixup"):
    model.apply(variables, soft, train=True, rngs=rngs)


def test_softmax_takes_any_label():
  model = smoke(head="softmax")
  variables = model.init(jax.random.key(0), BATCH)
  rngs = {"dropout": jax.random.key(0)}
  for label in ({}, {"label": jnp.full((4, 5), 0.2)}):
    inputs = {"image": BATCH["image"], **label}
    outputs = model.apply(variables, inputs, train=True, rngs=rngs)
    assert set(outputs) == {"features", "logits"}


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(image_size=10), "image_size=10 .* stride=4.* 8 or 12"),
    (dict(num_heads=3), "width=16 .* num_heads=3.* or set head_dim"),
    (dict(head_dim=0), "head_dim=0 must be at least 1"),
    (dict(dtype="float31"), "Unknown dtype 'float31'"),
    (dict(head="face"), "Unknown head 'face'; known: .*'cosface'"),
    (dict(head="softmax", margin=0.3), "margin=0.3.* model.margin=None"),
    (dict(head="sface", margin=0.3), "margin=0.3, but the head 'sface'"),
    (dict(scale=0.0), "scale=0.0 .* above 0"),
    (dict(margin=2.0), "margin=2.0 .* below pi / 2"),
    (dict(lora={"rank": 2}), "needs layers and rank"),
    (dict(lora=FFN | {"layers": "x", "rank": 2}), "matches no dense layer"),
  ],
)
def test_bad_model(fields, message):
  with pytest.raises(ValueError, match=message):
    smoke(**fields).init(jax.random.key(0), BATCH)


def test_bad_variant_and_inputs():
  with pytest.raises(
    ValueError, match="Face Transformer variant 'P8S8'. Did you"
  ):
    face_vit.build("P8S8", num_classes=2)
  model = smoke()
  variables = model.init(jax.random.key(0), BATCH)
  with pytest.raises(ValueError, match=r"Images have shape \(4, 12, 8, 3\)"):
    model.apply(variables, {"image": jnp.zeros((4, 12, 8, 3))})
  with pytest.raises(ValueError, match="takes no prompts"):
    prompts = {0: {"tokens": jnp.zeros((4, 1, 16))}}
    model.apply(variables, {**BATCH, "prompts": prompts})
