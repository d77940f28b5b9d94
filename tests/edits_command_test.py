"""python -m models.edits: what it shows, what it writes, what it refuses."""

import io
import json
import shutil

import numpy as np
import pytest
from edits_toy import REQUESTS
from edits_toy import assert_close
from edits_toy import make
from flax import traverse_util
from rich import console
from walks import watch

from configs import digits_gs_lora
from models import edits as edits_lib
from models import export
from models import pretrained
from models.edits import __main__ as command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Returns a workdir and the models between its requests."""
  workdir = tmp_path_factory.mktemp("run")
  return workdir, make(workdir)


def test_command_shows_the_requests(run, capsys):
  command.main([str(run[0])])
  out = capsys.readouterr().out
  lines = [line.split() for line in out.splitlines()]
  norm = edits_lib.summary(edits_lib.read_all(run[0])[2])["norm"]
  assert ["2", "fox,", "cat", "4", "5", "4,096", f"{norm:.4g}"] in lines
  block = next(line for line in lines if line[:1] == ["encoderblock_1"])
  assert block[2] == "0" and float(block[1]) > 0 and float(block[3]) > 0


def test_blocks_are_sorted_by_number():
  zero = {f"T/encoderblock_{i}/attn": True for i in (10, 2, 1)}
  edit = edits_lib.Edit(adapters={}, scale=1.0, zero=zero, classes=(0,))
  out = io.StringIO()
  for part in command.show({0: edit}):
    console.Console(file=out, width=100).print(part)
  title = "Norm of scale A B by lasso group and request"
  lines = out.getvalue().split(f"{title}\n")[1].splitlines()
  assert [line.split()[0] for line in lines[3:6]] == [
    "encoderblock_1/attn", "encoderblock_2/attn", "encoderblock_10/attn",
  ]  # fmt: skip


@pytest.mark.parametrize("choice", [("--without", "1"), ("--only", "2,0")])
def test_command_writes_the_model_without_a_request(
  run, choice, tmp_path, capsys
):
  workdir, models = run
  command.main([str(workdir), *choice, "--out", str(tmp_path / "less.npz")])
  assert "requests 0, 2 of 3" in capsys.readouterr().out
  written = pretrained.load(tmp_path / "less.npz", models[0], head="keep")
  edits = edits_lib.read_all(workdir)
  assert_close(written, edits_lib.apply(models[0], [edits[0], edits[2]]))


def test_command_writes_a_whole_export(run, tmp_path, capsys):
  workdir, models = run
  command.main([str(workdir), "--without=1,2", "--out", str(tmp_path / "less")])
  assert "requests 0 of 3" in capsys.readouterr().out
  model, params = export.read(tmp_path / "less")
  assert model == export.read(workdir / "export")[0]
  assert_close(params, models[1])
  classes = json.loads((tmp_path / "less" / "classes.json").read_text())
  assert classes["forgotten"] == {"0": list(REQUESTS[0])}
  assert classes["classes"]["5"] == "fox"


def test_command_writes_timm_layout(run, tmp_path, capsys):
  workdir, models = run
  path = tmp_path / "first.safetensors"
  command.main([str(workdir), "--without=0,1,2", "--out", str(path)])
  assert "the model with all requests undone." in capsys.readouterr().out
  params = pretrained.load(path, models[0], head="keep")
  assert_close(params, models[0])


def test_command_says_what_is_wrong(run, tmp_path, capsys):
  workdir = str(run[0])
  out = ["--out", str(tmp_path / "x.npz")]
  for arguments, message in (
    ([str(tmp_path)], "No edits in"),
    (
      [workdir, "--without=3,1", *out],
      r"Unknown requests \[3\]; .* \[0, 1, 2\]",
    ),
    ([workdir, "--only=7", *out], r"Unknown requests \[7\]"),
    ([workdir, "--only=1", "--out", "x.h5"], "must end in .npz or"),
    ([workdir, "--only=1", "--out", f"{workdir}/export"], "run's own export"),
    (
      [workdir, "--only=1", "--out", f"{workdir}/export/params.npz"],
      "run's own export",
    ),
    ([workdir, "--only=1", "--out", workdir], "files .* not part of an export"),
    (
      [workdir, "--only=1", "--out", f"{workdir}/edits/stage_1.npz"],
      "run's own edits",
    ),
  ):
    with pytest.raises(SystemExit, match=message):
      command.main(arguments)
  for arguments, message in (
    ([workdir, "--without=1"], "--out needs --without or --only"),
    ([workdir, *out], "--out needs --without or --only"),
    ([workdir, "--without=one", *out], "'one' must be numbers of requests"),
    ([workdir, "--without=1", "--only=1", *out], "not allowed with"),
  ):
    with pytest.raises(SystemExit, match="2"):
      command.main(arguments)
    assert message in capsys.readouterr().err
  (tmp_path / "edits").mkdir()
  for name in ("stage_0.npz", "checksums.json"):
    shutil.copy(run[0] / "edits" / name, tmp_path / "edits")
  with pytest.raises(SystemExit, match="no .*params.npz; run main.py on this"):
    command.main([str(tmp_path), "--without=0", *out])
  assert not (tmp_path / "x.npz").exists()


def test_a_run_of_requests_can_be_taken_back(tmp_path, capsys):
  config = digits_gs_lora.get_config("smoke")
  config.export = True
  seen = watch(config, tmp_path)
  begun = [
    {
      name.removeprefix("params/"): leaf
      for name, leaf in state.items()
      if name.startswith("params/") and "lora_" not in name
    }
    for state in (
      seen.begun[0],
      seen.begun[-1],
    )  # frozen from a request's start
  ]
  served = edits_lib.undo(tmp_path, [])
  assert_close(edits_lib.undo(tmp_path, [1]), begun[1])
  assert_close(edits_lib.undo(tmp_path, [0, 1]), begun[0])
  edits = edits_lib.read_all(tmp_path)
  start = traverse_util.unflatten_dict(begun[0], sep="/")
  assert_close(edits_lib.apply(start, edits.values()), served)
  for stage, edit in enumerate(edits.values()):
    found, report = edits_lib.summary(edit), seen.record["reports"][stage]
    assert found["weights_changed"] == report["touched_weights"] > 0
    assert found["adapter_entries"] == report["adapter_weights"] > 0
    norms = [group["norm"] for group in found["groups"].values()]
    np.testing.assert_allclose(
      norms, list(report["group_norm"].values()), rtol=1e-5
    )
    assert set(edit.classes) == set(
      seen.run.scenario.stages[stage].classes["forget"]
    )
  command.main([str(tmp_path)])
  assert "encoderblock_1" in capsys.readouterr().out
