"""Exports: what is in one, and that it gives the same logits elsewhere."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from edits_toy import CONFIG
from edits_toy import FIELDS
from edits_toy import NAMES
from edits_toy import assert_close

from configs import cifar10_deit_l2p
from libml import trees
from libml.images import preprocess
from models import MODELS
from models import export
from models import face_vit
from models import lora
from models import pretrained
from models import timm
from models import vit

FILES = set(export.FILES)
LORA = {"layers": r".*/(Dense_[01]|query)", "rank": 2, "alpha": 1.0}


def drawn(model, seed=0, scale=0.3):
  """Returns parameters, none of them zero."""
  size = model.image_size
  image = {"image": jnp.zeros((1, size, size, 3))}
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  rng = np.random.default_rng(seed)

  def draw(name, leaf):
    mean = 1 if name.endswith("scale") else 0
    return np.float32(rng.normal(mean, scale, leaf.shape))

  return trees.map_named(draw, shapes)


def images(model, count=4):
  size = model.image_size
  return np.float32(
    np.random.default_rng(1).normal(size=(count, size, size, 3))
  )


def logits(model, params, image):
  return jax.jit(model.apply)({"params": params}, {"image": image})["logits"]


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def small():
  """Returns a small ViT with adapters, and its parameters."""
  model = vit.build("smoke", **FIELDS, lora=LORA)
  return model, drawn(model)


def test_adapters_are_merged_and_logits_stay_to_the_bit(tmp_path, small):
  model, params = small
  export.write(tmp_path / "export", model, params=params, config=CONFIG)
  assert contents(tmp_path / "export").keys() == FILES
  plain, loaded = export.read(tmp_path / "export")
  assert plain == vit.build("smoke", **FIELDS)
  merged, _ = lora.split(lora.merge(params, model.lora_scale))
  image = images(model)
  ours = logits(plain, loaded, image)
  np.testing.assert_array_equal(ours, logits(plain, merged, image))
  theirs = logits(model, params, image)
  np.testing.assert_allclose(ours, theirs, atol=1e-4)
  base, _ = lora.split(params)
  assert abs(logits(plain, base, image) - theirs).max() > 0.01


@pytest.mark.parametrize("name", ["vit", "face_vit"])
def test_safetensors_holds_the_same_weights(tmp_path, name):
  options = dict(variant="smoke", image_size=8)
  model = MODELS[name](**options, num_classes=6, lora=LORA)
  config = {**CONFIG, "model": {"name": name, **options}}
  export.write(tmp_path / "export", model, params=drawn(model), config=config)
  _, loaded = export.read(tmp_path / "export")
  path = tmp_path / "export" / "model.safetensors"
  theirs = pretrained.load(path, loaded, head="keep")
  for name, leaf in trees.flatten(loaded).items():
    np.testing.assert_array_equal(trees.flatten(theirs)[name], leaf, name)


def test_the_same_arguments_give_the_same_bytes(tmp_path, small):
  model, params = small
  turned = dict(reversed(params.items()))
  for name, tree in (("one", params), ("two", turned)):
    export.write(tmp_path / name, model, params=tree, config=CONFIG)
  assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_config_builds_the_model_again(tmp_path):
  config = json.loads(cifar10_deit_l2p.get_config().to_json())
  config["model"]["classifier"] = "token"
  options = {**config["model"], "depth": 2, "lora": LORA}
  options.pop("name")
  model = vit.build(**options, num_classes=6)
  config["model"] = {"name": "vit", **options}
  params = drawn(model)
  export.write(
    tmp_path / "x", model, params=params, config=config, classes=NAMES
  )
  plain, _ = export.read(tmp_path / "x")
  assert plain == vit.build(**{**options, "lora": None}, num_classes=6)
  settings = json.loads((tmp_path / "x" / "config.json").read_text())
  assert settings["preprocess"] == config["preprocess"]
  assert settings["label_names"] == list(NAMES)
  theirs = settings["pretrained_cfg"]
  assert theirs["mean"] == config["preprocess"]["mean"]
  assert theirs["input_size"] == [3, model.image_size, model.image_size]


def test_face_transformer_comes_back(tmp_path):
  options = dict(variant="smoke", image_size=8)
  model = face_vit.build(**options, num_classes=6, lora=LORA)
  config = {**CONFIG, "model": {"name": "face_vit", **options}}
  params = drawn(model)
  export.write(tmp_path / "export", model, params=params, config=config)
  plain, loaded = export.read(tmp_path / "export")
  assert plain == face_vit.build(**options, num_classes=6)
  image = images(model)
  np.testing.assert_allclose(
    logits(plain, loaded, image), logits(model, params, image), atol=1e-3
  )
  settings = json.loads((tmp_path / "export" / "config.json").read_text())
  assert settings["not_in_timm"] == ["FaceViT"]


def test_every_evaluation_chain_has_a_counterpart_in_timm():
  chains = set(preprocess.CHAINS_EVAL)
  assert chains == {*timm.CROPS, "native"}


def test_classes_and_requests_lie_beside_the_weights(tmp_path, small):
  model, params = small
  write = export.write
  write(tmp_path / "ids", model, params=params, config=CONFIG)
  found = json.loads((tmp_path / "ids" / "classes.json").read_text())
  assert found == {"classes": {str(i): str(i) for i in range(6)}} | {
    "forgotten": {}
  }
  write(
    tmp_path / "names",
    model,
    params=params,
    config=CONFIG,
    classes=NAMES,
    forgotten={1: np.asarray([0]), 0: (3, 1)},
  )
  found = json.loads((tmp_path / "names" / "classes.json").read_text())
  assert found["classes"] == {str(i): name for i, name in enumerate(NAMES)}
  assert found["forgotten"] == {"0": [3, 1], "1": [0]}


@pytest.mark.parametrize("fails", ["save_torch", "_put"])
def test_failed_export_leaves_the_old_one(tmp_path, small, monkeypatch, fails):
  model, params = small
  folder = tmp_path / "export"
  export.write(folder, model, params=params, config=CONFIG)
  before = contents(folder)

  def fail(*args, **kwargs):
    raise OSError("disk full")

  with monkeypatch.context() as patch:
    patch.setattr(export, fails, fail)
    with pytest.raises(OSError, match="disk full"):
      export.write(folder, model, params=drawn(model, 1), config=CONFIG)
  assert contents(folder) == before
  assert os.listdir(tmp_path) == ["export"]
  export.write(folder, model, params=drawn(model, 1), config=CONFIG)
  assert contents(folder)["params.npz"] != before["params.npz"]
  assert os.listdir(tmp_path) == ["export"]


def test_what_timm_cannot_express_is_said(tmp_path, small):
  model = vit.build("smoke", **FIELDS, temperature=0.5, block_epsilon=1e-5)
  settings = export.settings(model, CONFIG)
  assert settings["not_in_timm"] == ["temperature=0.5", "block_epsilon=1e-05"]
  assert "architecture" not in settings
  assert "architecture" in export.settings(small[0], CONFIG)


def test_leaves_of_a_method_stay_out_of_timms_layout(tmp_path, small):
  model, params = small
  params = {**params, "prompts": {"pool": np.ones((2, 3), np.float32)}}
  export.write(tmp_path / "export", model, params=params, config=CONFIG)
  assert contents(tmp_path / "export").keys() == FILES - {"model.safetensors"}
  with pytest.raises(ValueError, match=r"extra: prompts/pool, file \(2, 3\)"):
    export.read(tmp_path / "export")
  with pytest.raises(ValueError, match=r"no names for \['prompts/pool'\]"):
    export.save_torch(tmp_path / "x.safetensors", model, lora.split(params)[0])


def test_bad_classes_are_refused_before_anything_is_written(tmp_path, small):
  model, params = small
  given = dict(params=params, config=CONFIG)
  with pytest.raises(ValueError, match="2 class names for a model of 6"):
    export.write(tmp_path / "x", model, **given, classes=["a", "b"])
  with pytest.raises(ValueError, match=r"forgotten classes \[-1, 6\]"):
    export.write(tmp_path / "x", model, **given, forgotten={0: [6, 1, -1]})
  assert not os.listdir(tmp_path)


def test_other_things_are_not_replaced(tmp_path, small):
  model, params = small
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.tex").touch()
  (tmp_path / "file").touch()
  for name in ("mine", "file"):
    with pytest.raises(FileExistsError, match="not part of an export"):
      export.write(tmp_path / name, model, params=params, config=CONFIG)
  assert sorted(os.listdir(tmp_path)) == ["file", "mine"]
  (tmp_path / "empty").mkdir()
  export.write(tmp_path / "empty", model, params=params, config=CONFIG)


# Reads exports and images, writes timm's logits. Before that, what lets timm be
# imported in the environment of the benchmarks (benchmarks/torch_step.py).
TIMM = """
import sys
import numpy as np
import torch
library = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
  if not hasattr(torch.ops.torchvision, name):
    library.define(f"{name}(Tensor boxes, Tensor scores, float x) -> Tensor")
import timm
for folder in sys.argv[1:]:
  model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
  image = torch.from_numpy(np.load(f"{folder}/images.npy"))
  with torch.no_grad():
    logits = model(image.permute(0, 3, 1, 2))
  np.save(f"{folder}/logits.npy", logits.numpy())
"""
VITS = {
  "small images": dict(variant="small_images", image_size=8, num_classes=10),
  "odd sizes": dict(
    patch_size=4, width=49, mlp_dim=16, num_heads=7, depth=2, image_size=12,
    num_classes=5, gelu="erf",  # 49 * (16 / 49) is below 16
  ),
  "all tokens": dict(
    variant="smoke", image_size=8, num_classes=3, classifier="gap", gelu="erf"
  ),
}  # fmt: skip


@pytest.fixture(scope="module")
def torch_python():
  """Returns a Python that has timm, or skips."""
  found = os.environ.get("PALIMPSEST_TORCH_PYTHON")
  if found is None and importlib.util.find_spec("timm") is None:
    pytest.skip("No timm: see CONTRIBUTING.md on PALIMPSEST_TORCH_PYTHON.")
  return found or sys.executable


def timm_logits(python, folders):
  """Returns timm's logits for the images in each exported folder."""
  done = subprocess.run(
    [python, "-c", TIMM, *map(str, folders)], capture_output=True, text=True
  )
  assert not done.returncode, done.stderr
  return [np.load(folder / "logits.npy") for folder in folders]


def test_timm_gives_the_same_logits(tmp_path, torch_python):
  folders, expected = [], []
  for name, options in VITS.items():
    model, folder = vit.build(**options, lora=LORA), tmp_path / name
    params = drawn(model, scale=0.2)
    config = {**CONFIG, "model": {"name": "vit", **options}}
    export.write(folder, model, params=params, config=config)
    np.save(folder / "images.npy", images(model))
    folders.append(folder)
    expected.append(logits(model, params, images(model)))
  for ours, theirs in zip(
    expected, timm_logits(torch_python, folders), strict=True
  ):
    assert np.ptp(ours, axis=0).max() > 0.3  # images differ
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_deit_tiny_in_timm(tmp_path, torch_python, real_data):
  source = real_data / "vit_ti16_deit_imagenet1k"
  options = dict(variant="ViT-Ti_16", gelu="erf")
  model = vit.build(**options, num_classes=1000, lora=LORA)
  weights = source / "vit_ti16_deit_imagenet1k.f16.npz"
  base, adapters = lora.split(drawn(model, scale=0.05))
  base = pretrained.load(weights, base, head="keep")
  folder = tmp_path / "export"
  export.write(
    folder,
    model,
    params=lora.join(base, adapters),
    config={**CONFIG, "model": {"name": "vit", **options}},
    classes=(source / "labels.txt").read_text().splitlines(),
  )
  settings = json.loads((folder / "config.json").read_text())
  assert settings["architecture"] == "vit_tiny_patch16_224"
  plain, params = export.read(folder)
  with np.load(source / "golden.npz") as file:
    pixels = np.float32(file["image"]) / 255
  mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  pixels = np.float32((pixels - np.reshape(mean, (1, 1, 1, 3))) / std)
  np.save(folder / "images.npy", pixels)
  ours = logits(plain, params, pixels)
  np.testing.assert_allclose(
    ours, timm_logits(torch_python, [folder])[0], rtol=1e-3, atol=1e-4
  )
  before = logits(plain, base, pixels)
  assert abs(ours - before).max() > 0.1
  merged, _ = lora.split(lora.merge(lora.join(base, adapters), 0.5))
  assert_close(params, jax.tree.map(np.asarray, merged))
