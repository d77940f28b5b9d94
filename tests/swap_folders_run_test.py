"""Three folders of JPEGs and a head: a swap from end to end."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import main
from configs import custom_swap
from libml import trees
from libml.results import tables
from models import export
from models import pretrained
from models import vit

KNOWN = 6
SETS = {
  "learn": ("owl_of_the_far_north", "bat_of_the_far_south"),
  "forget": ("4_shark",),
  "retain": ("5_jay", "0_hen", "2_eel"),
}


def write(root):
  """Writes a colour a class, 12 images each, as JPEGs."""
  rng = np.random.default_rng(0)
  for key, names in SETS.items():
    for name in names:
      folder = root / key / name
      folder.mkdir(parents=True)
      colour = rng.uniform(40, 215, 3)
      for i in range(12):
        noise = rng.normal(
          0, 8, (10, 12, 3)
        )  # not square, not the model's size
        pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=95)


def weights(path):
  """Writes a smoke ViT with a drawn head, and returns its leaves."""
  model = vit.build("smoke", depth=1, image_size=8, num_classes=KNOWN)
  inputs = {"image": np.zeros((1, 8, 8, 3), np.float32)}
  params = jax.jit(model.init)(jax.random.key(0), inputs)["params"]
  rng = np.random.default_rng(1)
  head = params["head"]["kernel"].shape
  params["head"]["kernel"] = rng.normal(0, 0.3, head).astype(np.float32)
  params["head"]["bias"] = rng.normal(0, 0.3, KNOWN).astype(np.float32)
  pretrained.save(path, jax.device_get(params))
  return trees.flatten(params)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Runs it; returns the folder, the results and the first weights."""
  folder = tmp_path_factory.mktemp("swap")
  write(folder)
  first = weights(folder / "vit.npz")
  arg = ",".join(f"{key}={folder / key}" for key in SETS)
  config = custom_swap.get_config(
    f"{arg},known={KNOWN},variant=smoke,size=8,columns"
  )
  config.batch_size = 8
  config.epochs = 2
  config.model.lora.rank = 2
  config.model.depth = 1
  config.model.gelu = "tanh"
  config.init_checkpoint = str(folder / "vit.npz")
  return folder, main.execute(config, folder / "run"), first


def test_run_ends_with_all_three_sets_measured(run):
  _, record, _ = run
  assert record["finished"] and record["name"] == "custom_swap:lf,columns"
  assert record["axes"]["stage_name"] == [
    "before",
    "stage 0: learn bat_of_the_far_south, owl_of_the_far_north",
    "stage 1: forget 4_shark",
  ]
  assert record["axes"]["test_set"] == ["learn", "forget", "retain"]
  assert record["data"]["old"]["splits"]["test"]["examples"] == 4 * 3
  counts = [r["train_retain"][""]["count"] for r in record["test_sets"]]
  assert counts == [27.0] * 3
  assert record["scenario"]["images"] == [
    {"retain": 27, "learn": 18},
    {"retain": 27 + 18, "forget": 9},
  ]


def test_export_names_the_new_classes_and_keeps_old_columns(run):
  folder, record, first = run
  names = [
    *("0_hen", "class 1", "2_eel", "class 3", "4_shark", "5_jay"),
    *("bat_of_the_far_south", "owl_of_the_far_north"),
  ]
  assert record["classes"] == names
  told = json.loads((folder / "run" / "export" / "classes.json").read_text())
  assert told["classes"] == {str(i): name for i, name in enumerate(names)}
  model, params = export.read(folder / "run" / "export")
  assert model.num_classes == KNOWN + 2
  leaves = trees.flatten(params)
  for leaf in ("head/kernel", "head/bias"):
    theirs = np.asarray(leaves[leaf])[..., :KNOWN]
    np.testing.assert_array_equal(theirs, first[leaf])
  # The argument "columns" trains the new ones.
  assert np.asarray(leaves["head/bias"])[KNOWN:].all()


def test_table_shows_the_sets(run, capsys):
  folder, record, _ = run
  tables.main([str(folder / "run")])
  text = capsys.readouterr().out
  assert "accuracy (%) before and after each stage" in text
  lines = [line.split() for line in text.splitlines() if line.strip(" ─")]
  _, header, *rows = lines
  assert header[:4] == ["after", "learn", "forget", "retain"]
  assert "H-mean" in header and text.count("of three") == 1
  assert "…" not in text  # long names wrap, figures stay whole
  rows = [row for row in rows if row[0] in ("before", "0:", "1:")]
  assert len(rows) == 3
  retained = record["summary"]["accuracy"][0]["acc_retain"]
  assert rows[0][3] == f"{100 * retained:.1f}"
  tables.main([str(folder / "run")] * 2)
  assert "After the last stage (%)" in capsys.readouterr().out
