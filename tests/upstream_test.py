"""Weights that a run starts from: what a file says, what a cache keeps."""

import pathlib

import jax
import numpy as np
import pytest
from toy import tiny

import main
from configs import custom_gs_lora
from libml.train import made_once
from libml.train import weights
from libml.train import workdirs
from models import export
from models import vit


def test_damaged_weights_are_made_again_from_their_run(tmp_path, monkeypatch):
  monkeypatch.setattr(made_once, "CACHE", tmp_path)
  path = pathlib.Path(
    main.upstream(lambda: False, None, "glyphs_pretrain:smoke")
  )
  good = path.read_bytes()
  assert len(np.load(path).files) > 20
  path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
  again = main.upstream(lambda: False, None, "glyphs_pretrain:smoke")
  assert pathlib.Path(again).read_bytes() == good


UNKNOWN = {"variant": None, "image_size": None, "gelu": None}


def test_settings_of_a_config_come_from_its_export(tmp_path, caplog):
  model = vit.build("smoke", num_classes=6, image_size=8, gelu="erf")
  params = jax.eval_shape(model.init, jax.random.key(0), model.example_input())
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params["params"])
  theirs = tiny(model__gelu="erf", preprocess__mean=(0.5,) * 3)
  export.write(
    tmp_path / "export", model, params=zeros, config=theirs.to_dict()
  )
  path = tmp_path / "export" / "params.npz"
  config = tiny(init_checkpoint=str(path), random_init=False)
  config.model.update(UNKNOWN)
  caplog.set_level("INFO", "palimpsest")
  found = weights.settle(config)
  assert (found.model.variant, found.model.image_size) == ("smoke", 8)
  assert (found.model.gelu, found.preprocess.mean) == ("erf", (0.5,) * 3)
  assert "says: model.variant=smoke, model.image_size=8, model." in caplog.text
  assert weights.settle(found) is found  # nothing is left to ask
  (tmp_path / "checkpoints" / "1").mkdir(parents=True)
  workdirs.claim(tmp_path, config.to_dict())
  (tmp_path / "config.json").write_text(found.to_json())
  other = found.copy_and_resolve_references()
  other.model.gelu = "quick"
  with pytest.raises(ValueError, match="model.gelu: .*, now 'quick'"):
    workdirs.claim(tmp_path, {**found.to_dict(), "model": dict(other.model)})


def test_what_no_file_says_is_asked_for(tmp_path):
  config = custom_gs_lora.get_config("forget=cat")
  with pytest.raises(ValueError, match="give --my_config.init_checkpoint="):
    weights.settle(config)
  assert custom_gs_lora.get_config("deit,size=32").model.image_size == 32
