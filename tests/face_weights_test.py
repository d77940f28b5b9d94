"""Weights of faces and of heads: published names, rows, adapters, torch."""

import functools
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from models import convert
from models import face_vit
from models import layouts
from models import pretrained
from models import vit

TOY = dict(
  num_classes=3,
  image_size=16,
  patch_size=8,
  stride=8,
  width=6,
  depth=11,  # two digits in the layers' names
  mlp_dim=10,
  num_heads=2,
)
VIT = dict(
  num_classes=3, image_size=8, patch_size=4, width=6, depth=2, mlp_dim=10,
  num_heads=2,
)  # fmt: skip
BUILDERS = {
  "face": functools.partial(face_vit.build, **TOY),
  "sliding": functools.partial(
    face_vit.build, **TOY | {"patch_size": 12, "padding": 4}
  ),
  "softmax": functools.partial(face_vit.build, **TOY, head="softmax"),
  "heads": functools.partial(face_vit.build, **TOY, head_dim=5),
  "vit": functools.partial(vit.build, **VIT),
}


def template(kind, **changes):
  model = BUILDERS[kind](**changes)
  size = model.image_size
  image = {"image": jnp.zeros((1, size, size, 3))}
  return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


def draw(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes
  )


def assert_equal(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def save(path, tree, kind):
  pretrained.save_torch(path, tree, BUILDERS[kind]().torch_layout)


@pytest.mark.parametrize("kind", BUILDERS)
def test_torch_names_and_back_bit_for_bit(tmp_path, kind):
  shapes = template(kind)
  tree, path = draw(shapes), tmp_path / "x.safetensors"
  save(path, tree, kind)
  assert_equal(pretrained.load(path, shapes, head="keep"), tree)
  # The same names in .npz.
  np.savez(tmp_path / "x.npz", **safetensors.load_file(path))
  assert_equal(pretrained.load(tmp_path / "x.npz", shapes, head="keep"), tree)


def test_published_names_and_shapes(tmp_path):
  path = tmp_path / "x.safetensors"
  pretrained.save_torch(path, draw(template("face")), layouts.FACE)
  found = {k: v.shape for k, v in safetensors.load_file(path).items()}
  block = "transformer.layers.10"
  assert len(found) == 11 * 11 + 7
  for name, shape in {
    "pos_embedding": (1, 5, 6),
    "cls_token": (1, 1, 6),
    "patch_to_embedding.weight": (6, 192),
    "patch_to_embedding.bias": (6,),
    f"{block}.0.fn.norm.weight": (6,),
    f"{block}.0.fn.fn.to_qkv.weight": (18, 6),
    f"{block}.0.fn.fn.to_out.0.bias": (6,),
    f"{block}.1.fn.norm.bias": (6,),
    f"{block}.1.fn.fn.net.0.weight": (10, 6),
    f"{block}.1.fn.fn.net.3.weight": (6, 10),
    "mlp_head.0.weight": (6,),
    "loss.weight": (3, 6),
  }.items():
    assert found[name] == shape, name


def test_half_types_stay(tmp_path):
  half = jax.tree.map(
    lambda leaf: np.asarray(leaf, jnp.bfloat16), draw(template("vit"))
  )
  path = tmp_path / "x.safetensors"
  pretrained.save_torch(path, half, layouts.TIMM)
  shapes = template("vit", param_dtype="bfloat16")
  assert_equal(pretrained.load(path, shapes, head="keep"), half)


def test_names_of_parallel_training(tmp_path):
  shapes = template("face")
  tree, path = draw(shapes), tmp_path / "x.safetensors"
  pretrained.save_torch(path, tree, layouts.FACE)
  found = safetensors.load_file(path)
  safetensors.save_file({f"module.{k}": v for k, v in found.items()}, path)
  assert_equal(pretrained.load(path, shapes, head="keep"), tree)


@pytest.mark.parametrize("adapters", ["merged", "apart"])
def test_adapters_in_the_file(tmp_path, adapters):
  shapes = template("face")
  tree, path = draw(shapes), tmp_path / "x.safetensors"
  pretrained.save_torch(path, tree, layouts.FACE)
  found = safetensors.load_file(path)
  rng = np.random.default_rng(1)
  block = "transformer.layers.3"
  sizes = {
    f"{block}.1.fn.fn.net.0.lora_A": (2, 6),
    f"{block}.1.fn.fn.net.0.lora_B": (10, 2),
    f"{block}.0.fn.fn.to_qkv.lora_A": (6, 6),  # three of rank 2
    f"{block}.0.fn.fn.to_qkv.lora_B": (18, 2),
  }
  added = {k: rng.normal(size=s).astype(np.float32) for k, s in sizes.items()}
  safetensors.save_file(found | added, path)
  loaded = pretrained.load(path, shapes, head="keep", adapters=adapters)
  if adapters == "apart":
    ours = tree["Transformer"]["encoderblock_3"]
    kernel = ours["MlpBlock_0"]["Dense_0"]["kernel"]
    a, b = (added[f"{block}.1.fn.fn.net.0.lora_{x}"] for x in "AB")
    kernel += (b @ a).T / 2
    a, b = (added[f"{block}.0.fn.fn.to_qkv.lora_{x}"] for x in "AB")
    for i, part in enumerate(("query", "key", "value")):
      kernel = ours["MultiHeadDotProductAttention_0"][part]["kernel"]
      change = b[6 * i : 6 * i + 6] @ a[2 * i : 2 * i + 2]
      kernel += change.T.reshape(6, 2, 3) / 2
  assert jax.tree.structure(loaded) == jax.tree.structure(tree)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6),
    loaded,
    tree,
  )
  if adapters == "merged":
    assert_equal(loaded, tree)


def test_adapter_without_its_partner(tmp_path):
  path = tmp_path / "x.safetensors"
  pretrained.save_torch(path, draw(template("face")), layouts.FACE)
  name = "transformer.layers.0.1.fn.fn.net.0.lora_A"
  found = safetensors.load_file(path) | {name: np.ones((2, 6), np.float32)}
  safetensors.save_file(found, path)
  with pytest.raises(ValueError, match=f"{name}, but not its weight or"):
    pretrained.load(path, template("face"), head="keep", adapters="apart")
  with pytest.raises(ValueError, match="Unknown adapters 'fold'"):
    pretrained.load(path, template("face"), adapters="fold")


@pytest.mark.parametrize("kind", ["vit", "face"])
@pytest.mark.parametrize("layout", ["ours", "torch"])
def test_rows_of_the_head(tmp_path, kind, layout):
  tree = draw(template(kind, num_classes=7))
  path = tmp_path / ("x.npz" if layout == "ours" else "x.safetensors")
  if layout == "ours":
    pretrained.save(path, tree)
  else:
    save(path, tree, kind)
  loaded = pretrained.load(path, template(kind), head="keep", rows=[5, 0, 3])
  tree["head"] = {k: v[..., [5, 0, 3]] for k, v in tree["head"].items()}
  assert_equal(loaded, tree)


def test_rows_of_hugging_faces_head(tmp_path):
  from pretrained_test import TOY as SIZES
  from pretrained_test import to_hugging_face

  def shapes(count):
    model = vit.build(**SIZES | {"num_classes": count})
    image = {"image": jnp.zeros((1, 8, 8, 3))}
    return jax.eval_shape(model.init, jax.random.key(0), image)["params"]

  tree, path = draw(shapes(5)), tmp_path / "x.safetensors"
  safetensors.save_file(to_hugging_face(tree), path)
  loaded = pretrained.load(path, shapes(2), head="keep", rows=[4, 1])
  tree["head"] = {k: v[..., [4, 1]] for k, v in tree["head"].items()}
  assert_equal(loaded, tree)


def test_bad_rows(tmp_path):
  tree, path = draw(template("vit", num_classes=7)), tmp_path / "x.npz"
  pretrained.save(path, tree)
  load = functools.partial(pretrained.load, path, template("vit"))
  with pytest.raises(ValueError, match=r"columns \[-1, 7\], .* 0 to 6"):
    load(head="keep", rows=[7, -1, 2])
  with pytest.raises(ValueError, match="2 columns .* model of 3 classes"):
    load(head="keep", rows=[0, 1])
  with pytest.raises(ValueError, match="init_head_names .*init_head='fresh'"):
    load(rows=[0, 1, 2])
  del tree["head"]
  pretrained.save(path, tree)
  with pytest.raises(
    ValueError, match="has no head from which init_head_names"
  ):
    load(head="keep", rows=[0, 1, 2])


def test_cosines_cannot_start_from_zero(tmp_path):
  path = tmp_path / "x.safetensors"
  pretrained.save_torch(path, draw(template("face")), layouts.FACE)
  with pytest.raises(
    ValueError, match='Keep the file.s head .init_head="keep"'
  ):
    pretrained.load(path, template("face"))
  pretrained.save_torch(path, draw(template("softmax")), layouts.FACE)
  loaded = pretrained.load(path, template("softmax", num_classes=9))
  assert loaded["head"]["kernel"].shape == (6, 9)
  assert not loaded["head"]["kernel"].any()


def test_writers_refuse_what_has_no_place(tmp_path):
  tree = draw(template("vit", lora={"layers": ".*/query", "rank": 1}))
  with pytest.raises(ValueError, match="query/lora_a.*merge adapters first"):
    pretrained.save_torch(tmp_path / "x.safetensors", tree, layouts.TIMM)
  with pytest.raises(ValueError, match="x.npz: it must end in .safetensors"):
    pretrained.save_torch(
      tmp_path / "x.npz", draw(template("vit")), layouts.TIMM
    )
  assert not list(tmp_path.iterdir())


class Tensor:
  """What convert asks of a torch tensor."""

  dtype = "torch.float32"

  def __init__(self, array):
    self.array = array

  def detach(self):
    return self

  def numpy(self):
    return self.array


def torch_that_loads(weights, version="2.9.1+cpu"):
  def load(path, *, map_location, weights_only):
    assert weights_only is True and map_location == "cpu"
    if isinstance(weights, Exception):
      raise weights
    return weights

  return types.SimpleNamespace(__version__=version, load=load)


@pytest.mark.parametrize("nest", [None, "state_dict"])
def test_convert(tmp_path, monkeypatch, capsys, nest):
  tensor = Tensor(np.arange(6, dtype=np.float32).reshape(2, 3).T)
  weights = {"loss.weight": tensor}
  weights = weights if nest is None else {"epoch": 3, nest: weights}
  monkeypatch.setitem(sys.modules, "torch", torch_that_loads(weights))
  (tmp_path / "x.pth").write_bytes(b"")
  convert.main([str(tmp_path / "x.pth"), str(tmp_path / "x.safetensors")])
  found = safetensors.load_file(tmp_path / "x.safetensors")
  np.testing.assert_array_equal(found["loss.weight"], tensor.array)
  assert "1 tensors written" in capsys.readouterr().out


@pytest.mark.parametrize(
  "torch, message",
  [
    (None, "needs torch, which can be on another machine: pip install"),
    (torch_that_loads({}, "2.5.1"), "CVE-2025-32434"),
    (
      torch_that_loads(RuntimeError("a class")),
      r"more than tensors, or is damaged .RuntimeError",
    ),
    (torch_that_loads([1]), "holds a list"),
    (torch_that_loads({"epoch": 3}), "must hold tensors by name, but holds"),
  ],
)
def test_convert_refuses(tmp_path, monkeypatch, torch, message):
  monkeypatch.setitem(sys.modules, "torch", torch)
  source, target = tmp_path / "x.pth", tmp_path / "x.safetensors"
  source.write_bytes(b"")
  with pytest.raises(SystemExit, match=message):
    convert.main([str(source), str(target)])
  assert not target.exists()
  with pytest.raises(SystemExit, match="must end in .safetensors"):
    convert.main([str(source), str(tmp_path / "x.npz")])
  with pytest.raises(SystemExit, match="There is no file"):
    convert.main([str(tmp_path / "y.pth"), str(target)])


def test_convert_is_a_command():
  done = subprocess.run(
    [sys.executable, "-m", "models.convert", "--help"],
    check=True,
    capture_output=True,
    text=True,
  )
  assert "OUT.safetensors" in done.stdout
