import functools
import hashlib
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors import numpy as safetensors

from models import checksums
from models import layouts
from models import pretrained
from models import vit

TOY = dict(
  num_classes=3,
  image_size=8,
  patch_size=4,
  width=6,
  depth=11,  # two digits in the layers' names
  mlp_dim=10,
  num_heads=2,
)
ATTENTION = "MultiHeadDotProductAttention_"


@functools.cache
def template(**fields):
  model = vit.build(**{**TOY, **fields})
  size = model.image_size
  image = {"image": jnp.zeros((1, size, size, 3))}
  return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


def flatten(tree):
  return traverse_util.flatten_dict(tree, sep="/")


@pytest.fixture
def tree():
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), template()
  )


def assert_equal(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(ours))


def torch_dense(leaf, prefix, heads=0):
  """A Linen dense or convolution layer as torch stores it."""
  kernel, bias = leaf["kernel"], leaf["bias"]
  if heads == 1:  # [D, H, K] -> [H K, D]
    kernel, bias = kernel.reshape(len(kernel), -1), bias.reshape(-1)
  if heads == 2:  # [H, K, D] -> [D, H K]
    kernel = kernel.reshape(-1, kernel.shape[-1])
  axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
  return {
    f"{prefix}.weight": np.ascontiguousarray(kernel.transpose(axes)),
    f"{prefix}.bias": bias,
  }


def torch_norm(leaf, prefix):
  return {f"{prefix}.weight": leaf["scale"], f"{prefix}.bias": leaf["bias"]}


def blocks(tree):
  for i in range(TOY["depth"]):
    block = tree["Transformer"][f"encoderblock_{i}"]
    yield i, block, block[f"{ATTENTION}0"], block["MlpBlock_0"]


def to_timm(tree):
  flat = {
    "cls_token": tree["cls"],
    "pos_embed": tree["Transformer"]["posembed_input"]["pos_embedding"],
    **torch_dense(tree["embedding"], "patch_embed.proj"),
    **torch_norm(tree["Transformer"]["encoder_norm"], "norm"),
    **torch_dense(tree["head"], "head"),
  }
  for i, block, attention, mlp in blocks(tree):
    name = f"blocks.{i}"
    parts = [
      torch_dense(attention[part], "x", heads=1)
      for part in ("query", "key", "value")
    ]
    for leaf in ("weight", "bias"):
      flat[f"{name}.attn.qkv.{leaf}"] = np.concatenate(
        [part[f"x.{leaf}"] for part in parts]
      )
    flat |= torch_dense(attention["out"], f"{name}.attn.proj", heads=2)
    flat |= torch_norm(block["LayerNorm_0"], f"{name}.norm1")
    flat |= torch_norm(block["LayerNorm_1"], f"{name}.norm2")
    flat |= torch_dense(mlp["Dense_0"], f"{name}.mlp.fc1")
    flat |= torch_dense(mlp["Dense_1"], f"{name}.mlp.fc2")
  return flat


def to_hugging_face(tree, prefix="vit."):
  position = tree["Transformer"]["posembed_input"]["pos_embedding"]
  flat = {
    "embeddings.cls_token": tree["cls"],
    "embeddings.position_embeddings": position,
    **torch_dense(tree["embedding"], "embeddings.patch_embeddings.projection"),
    **torch_norm(tree["Transformer"]["encoder_norm"], "layernorm"),
    "pooler.dense.weight": np.ones((6, 6), np.float32),
    "pooler.dense.bias": np.ones(6, np.float32),
  }
  for i, block, attention, mlp in blocks(tree):
    name = f"encoder.layer.{i}"
    for part in ("query", "key", "value"):
      theirs = f"{name}.attention.attention.{part}"
      flat |= torch_dense(attention[part], theirs, heads=1)
    flat |= torch_dense(
      attention["out"], f"{name}.attention.output.dense", heads=2
    )
    flat |= torch_norm(block["LayerNorm_0"], f"{name}.layernorm_before")
    flat |= torch_norm(block["LayerNorm_1"], f"{name}.layernorm_after")
    flat |= torch_dense(mlp["Dense_0"], f"{name}.intermediate.dense")
    flat |= torch_dense(mlp["Dense_1"], f"{name}.output.dense")
  flat = {prefix + name: array for name, array in flat.items()}
  return flat | torch_dense(tree["head"], "classifier")


def to_pre_linen(tree):
  flat = {}
  for name, array in flatten(tree).items():
    name = name.replace("LayerNorm_1", "LayerNorm_2")
    name = name.replace(f"{ATTENTION}0", f"{ATTENTION}1")
    flat[name.replace("MlpBlock_0", "MlpBlock_3")] = array
  return flat


def write(path, flat):
  if path.suffix == ".npz":
    np.savez(path, **flat)
  else:
    safetensors.save_file(flat, path)
  return path


@pytest.mark.parametrize(
  "name, convert",
  [
    ("ours.npz", flatten),
    ("ours.safetensors", flatten),
    ("old.npz", to_pre_linen),
    ("timm.safetensors", to_timm),
    ("hf.safetensors", to_hugging_face),
    ("bare.safetensors", lambda tree: to_hugging_face(tree, prefix="")),
  ],
)
def test_every_layout_gives_the_same_tree(tmp_path, tree, name, convert):
  path = write(tmp_path / name, convert(tree))
  assert_equal(pretrained.load(path, template(), head="keep"), tree)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_save_and_load(tmp_path, tree, suffix):
  path = tmp_path / f"vit{suffix}"
  # A transposed view: the file must hold its values, not its buffer.
  tree["head"]["kernel"] = np.ones((3, 6), np.float32).cumsum(1).T
  pretrained.save(path, tree)
  assert_equal(pretrained.load(path, template(), head="keep"), tree)
  assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_save_bfloat16(tmp_path, tree, suffix):
  half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), tree)
  pretrained.save(tmp_path / f"vit{suffix}", half)
  loaded = pretrained.load(
    tmp_path / f"vit{suffix}", template(param_dtype="bfloat16"), head="keep"
  )
  assert_equal(loaded, jax.tree.map(np.asarray, half))


def test_failed_save_leaves_the_old_file(tmp_path, tree, monkeypatch):
  path = tmp_path / "vit.npz"
  pretrained.save(path, tree)
  before = checksums.of(path)

  def fail(*args, **kwargs):
    raise OSError("disk full")

  monkeypatch.setattr(np, "savez", fail)
  with pytest.raises(OSError, match="disk full"):
    pretrained.save(path, tree)
  assert checksums.of(path) == before
  assert os.listdir(tmp_path) == ["vit.npz"]


def test_checksum(tmp_path):
  (tmp_path / "x").write_bytes(b"abc")
  expected = hashlib.sha256(b"abc").hexdigest()
  assert checksums.of(tmp_path / "x") == expected


def test_fresh_head(tmp_path, tree):
  flat = flatten(tree)
  flat["pre_logits/kernel"] = np.ones((6, 6), np.float32)
  flat["pre_logits/bias"] = np.ones(6, np.float32)
  path = write(tmp_path / "vit.npz", flat)
  loaded = pretrained.load(path, template(num_classes=7))
  tree["head"] = {
    "kernel": np.zeros((6, 7), np.float32),
    "bias": np.zeros(7, np.float32),
  }
  assert_equal(loaded, tree)
  # The file's head reads pre_logits, which the model has not.
  with pytest.raises(ValueError, match="extra: pre_logits/bias"):
    pretrained.load(path, template(), head="keep")


def test_new_columns_come_behind_the_files(tmp_path, tree):
  path = write(tmp_path / "vit.npz", flatten(tree))
  wider = template(num_classes=5)
  loaded = pretrained.load(path, wider, head="keep", new=2, seed=4)
  for name, leaf in flatten(loaded).items():
    ours = leaf[..., :3] if name.startswith("head/") else leaf
    np.testing.assert_array_equal(ours, flatten(tree)[name], name)
  drawn = loaded["head"]["kernel"][:, 3:]
  # Of a layer of 6 x 2 by itself.
  assert 0.5 < abs(drawn).max() <= np.sqrt(6 / (6 + 2))
  assert not loaded["head"]["bias"][3:].any()
  again = pretrained.load(path, wider, head="keep", new=2, seed=4)
  assert_equal(again, loaded)
  other = pretrained.load(path, wider, head="keep", new=2, seed=5)
  assert (other["head"]["kernel"][:, 3:] != drawn).all()


def test_new_columns_follow_the_chosen_rows(tmp_path, tree):
  path = write(tmp_path / "vit.npz", flatten(tree))
  options = {"head": "keep", "rows": (2, 0), "new": 1}
  kernel = pretrained.load(path, template(), **options)["head"]["kernel"]
  np.testing.assert_array_equal(
    kernel[:, :2], tree["head"]["kernel"][:, [2, 0]]
  )
  assert kernel.shape == (6, 3)
  with pytest.raises(ValueError, match="2 columns .* a model of 3 classes"):
    pretrained.load(path, template(num_classes=4), **options)


def test_new_columns_need_the_head_of_the_known_ones(tmp_path, tree):
  path = write(tmp_path / "vit.npz", flatten(tree))
  with pytest.raises(ValueError, match="has 3 classes, .* know 4, .*known=3"):
    pretrained.load(path, template(num_classes=6), head="keep", new=2)
  del tree["head"]
  path = write(tmp_path / "bare.npz", flatten(tree))
  with pytest.raises(ValueError, match="no head to which 2 new classes"):
    pretrained.load(path, template(num_classes=5), head="keep", new=2)


def test_template_types(tmp_path, tree):
  flat = {k: v.astype(np.float16) for k, v in flatten(tree).items()}
  path = write(tmp_path / "vit.npz", flat)
  loaded = pretrained.load(path, template(param_dtype="bfloat16"))
  assert {x.dtype for x in jax.tree.leaves(loaded)} == {jnp.dtype("bfloat16")}


def test_resize_keeps_a_linear_field(tmp_path, tree):
  # 2 x 2 to 5 x 5, ends aligned: a field linear in row and column stays so.
  def field(side):
    at = np.linspace(0, 1, side)
    grid = 2 * at[:, None, None] + 5 * at[None, :, None] + np.arange(6)
    token = np.full((1, 6), 9.0)
    return np.concatenate([token, grid.reshape(-1, 6)])[None]

  tree["Transformer"]["posembed_input"]["pos_embedding"] = field(2)
  path = write(tmp_path / "vit.npz", flatten(tree))
  loaded = pretrained.load(path, template(image_size=20))
  np.testing.assert_allclose(
    loaded["Transformer"]["posembed_input"]["pos_embedding"],
    field(5),
    rtol=1e-6,
  )


def test_one_error_lists_every_leaf(tmp_path, tree):
  flat = flatten(tree)
  del flat["cls"]
  del flat["Transformer/encoder_norm/bias"]
  flat["strange"] = np.ones(2, np.float32)
  flat["embedding/bias"] = np.ones(4, np.float32)
  path = write(tmp_path / "vit.npz", flat)
  with pytest.raises(ValueError) as error:
    pretrained.load(path, template(num_classes=7), head="keep")
  lines = str(error.value).splitlines()
  assert lines[1:-1] == [
    "  missing: Transformer/encoder_norm/bias, model (6,)",
    "  missing: cls, model (1, 1, 6)",
    "  shape: embedding/bias, file (4,), model (6,)",
    "  shape: head/bias, file (3,), model (7,)",
    "  shape: head/kernel, file (6, 3), model (6, 7)",
    "  extra: strange, file (2,)",
  ]


def test_unknown_torch_names_are_extra(tmp_path, tree):
  flat = to_timm(tree) | {"dist_token": np.ones((1, 1, 6), np.float32)}
  path = write(tmp_path / "deit.safetensors", flat)
  with pytest.raises(ValueError, match="extra: dist_token, file"):
    pretrained.load(path, template())


def test_grid_that_is_no_square_is_misshapen(tmp_path, tree):
  tree["Transformer"]["posembed_input"]["pos_embedding"] = np.ones((1, 4, 6))
  path = write(tmp_path / "vit.npz", flatten(tree))
  with pytest.raises(ValueError, match=r"pos_embedding, file \(1, 4, 6\)"):
    pretrained.load(path, template())


def test_two_names_for_one_leaf(tmp_path, tree):
  path = write(tmp_path / "vit.npz", flatten(tree) | to_pre_linen(tree))
  with pytest.raises(ValueError, match="two names"):
    pretrained.load(path, template())


class Bomb:
  """Writes a file when unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth"])
def test_torch_pickles_are_refused(tmp_path, suffix):
  path = tmp_path / f"vit{suffix}"
  path.write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
  with pytest.raises(ValueError, match="convert it to .safetensors"):
    pretrained.load(path, template())
  assert not (tmp_path / "boom").exists()


def test_pickles_in_npz_are_refused(tmp_path):
  bomb = Bomb(tmp_path / "boom")
  np.savez(tmp_path / "a.npz", cls=np.array([bomb, 1], object))
  (tmp_path / "b.npz").write_bytes(pickle.dumps(bomb))
  for name in ("a.npz", "b.npz"):
    with pytest.raises(ValueError, match="not a .npz file of plain"):
      pretrained.load(tmp_path / name, template())
  assert not (tmp_path / "boom").exists()


def test_bad_arguments(tmp_path, tree):
  with pytest.raises(ValueError, match="known suffixes"):
    pretrained.load(tmp_path / "vit.h5", template())
  with pytest.raises(ValueError, match="known suffixes"):
    pretrained.save(tmp_path / "vit.h5", tree)
  with pytest.raises(ValueError, match="init_head='drop' must be"):
    pretrained.load(tmp_path / "vit.npz", template(), head="drop")
  with pytest.raises(FileNotFoundError):
    pretrained.load(tmp_path / "vit.npz", template())


def test_deit_tiny(real_data):
  folder = real_data / "vit_ti16_deit_imagenet1k"
  model = vit.build("ViT-Ti_16", num_classes=1000, gelu="erf")
  image = {"image": jnp.zeros((1, 224, 224, 3))}
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  path = folder / "vit_ti16_deit_imagenet1k.f16.npz"
  params = pretrained.load(path, shapes, head="keep")
  with np.load(folder / "golden.npz") as file:
    golden = dict(file)
  mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
  pixels = (golden["image"] / np.float32(255) - np.array([[[mean]]])) / std
  pixels = pixels.astype(np.float32)
  outputs = jax.jit(model.apply)({"params": params}, {"image": pixels})
  for ours, theirs in (("features", "cls_feature"), ("logits", "logits")):
    np.testing.assert_allclose(
      outputs[ours], golden[theirs], rtol=1e-3, atol=1e-4
    )


NPZ = {"variant": "smoke", "image_size": 8}


@pytest.mark.parametrize(
  ("name", "gelu"),
  [
    ("ours.npz", {}),
    ("official.npz", {"gelu": "tanh"}),
    ("timm.safetensors", {"gelu": "erf"}),
  ],
)
def test_a_file_says_which_model_it_is(tmp_path, name, gelu):
  tree = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype),
    template(**vit.VARIANTS["smoke"]),
  )
  if name == "ours.npz":
    pretrained.save(tmp_path / name, tree)
  elif name == "official.npz":
    flat = {
      k.replace("MlpBlock_0", "MlpBlock_3"): v for k, v in flatten(tree).items()
    }
    np.savez(tmp_path / name, **flat)
  else:
    pretrained.save_torch(tmp_path / name, tree, layouts.TIMM)
  assert pretrained.settings(tmp_path / name) == {"model": {**NPZ, **gelu}}


def test_a_file_of_no_variant_is_named(tmp_path, tree):
  path = tmp_path / "own.npz"
  pretrained.save(path, tree)
  with pytest.raises(
    ValueError, match="own.npz is a ViT of width 6, .*takes .*ViT-B_16"
  ):
    pretrained.settings(path)
  np.savez(path, w=np.zeros(3, np.float32))
  with pytest.raises(ValueError, match="does not have a ViT's parameters"):
    pretrained.settings(path)


def test_a_file_of_another_variant_is_one_line(tmp_path):
  path = tmp_path / "small.npz"
  sizes = template(**vit.VARIANTS["small_images"])
  pretrained.save(path, jax.tree.map(lambda x: np.zeros(x.shape), sizes))
  with pytest.raises(
    ValueError,
    match="small.npz is a small_images at 8 pixels, and this config asks for "
    "smoke at 16 pixels: set --my_config.model.variant=small_images, or use",
  ) as error:
    fields = {**vit.VARIANTS["smoke"], "image_size": 16}
    pretrained.load(path, template(**fields))
  assert "\n" not in str(error.value)
