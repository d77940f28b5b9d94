"""What a disk or a stranger changed is named, or made again."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile

import edits_toy
import jax
import numpy as np
import pytest
from toy import tiny

import main
from libml.results import results
from libml.results import tables
from libml.train import checkpoint
from libml.train import made_once
from libml.train import workdirs
from models import checksums
from models import edits as edits_lib
from models import export
from models import initial
from models import pretrained
from models.edits import __main__ as edits_command

CONFIG = {"export": False, "audit": {"stages": "none"}, "seed": 1}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  """Returns the workdir of a finished run."""
  workdir = tmp_path_factory.mktemp("done")
  main.execute(tiny(epochs=1), workdir)
  return workdir


@pytest.mark.parametrize(
  "content", [b"", b"{", b"{}", b"[]", b"\xff\xfe", b'{"finished": tr']
)
def test_results_that_cannot_be_read_are_named(tmp_path, content):
  (tmp_path / "results.json").write_bytes(content)
  with pytest.raises(results.Damaged, match="results.json cannot be read"):
    results.read(tmp_path / "results.json")


def test_damaged_results_are_made_again(tmp_path, done, caplog):
  workdir = tmp_path / "run"
  shutil.copytree(done, workdir)
  whole = json.loads((done / "results.json").read_text())
  (workdir / "results.json").write_bytes(b'{"finished": tr')
  main.execute(tiny(epochs=1), workdir)
  assert "made again from the last checkpoint" in caplog.text
  again = json.loads((workdir / "results.json").read_text())
  for key in ("matrix", "test_sets", "summary", "train_steps", "finished"):
    assert again[key] == whole[key]


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff\xfe"])
def test_a_config_that_cannot_be_read_is_named(tmp_path, content):
  (tmp_path / "checkpoints" / "1").mkdir(parents=True)
  (tmp_path / "config.json").write_bytes(content)
  with pytest.raises(ValueError, match="config.json cannot be read .*Restore"):
    workdirs.claim(tmp_path, CONFIG)


def test_an_unreadable_checkpoint_is_named_in_a_short_line(tmp_path):
  leaves = {"w": jax.numpy.ones(3)}
  with checkpoint.Saver(tmp_path, keep=1) as saver:
    saver.save(1, leaves, {})
    saver.wait()
    manifest = tmp_path / "1" / "state" / "manifest.ocdbt"
    data = bytearray(manifest.read_bytes())
    data[-1] ^= 1
    manifest.write_bytes(data)
    with pytest.raises(ValueError, match="No checkpoint can be used") as error:
      saver.restore(jax.eval_shape(lambda: leaves))
  assert "DATA_LOSS" in str(error.value) and len(str(error.value)) < 600


def test_one_run_holds_a_workdir(tmp_path):
  (tmp_path / "lock").write_text("process 1 of a run that is dead\n")
  with workdirs.begin(tmp_path, CONFIG, audit=False) as (record, _):
    assert record is None
    with pytest.raises(ValueError) as error:
      with workdirs.begin(tmp_path, CONFIG, audit=False):
        pass
    assert f"is in use by process {os.getpid()} on" in str(error.value)
    assert "another --workdir" in str(error.value)
  with workdirs.begin(tmp_path, CONFIG, audit=False):
    pass


WAIT = """
import time
from libml.devices import processes
stop = processes.stop_on_signals()
print("ready", flush=True)
while not stop(): time.sleep(0.01)
print("asked", flush=True)
time.sleep(30)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_stop_and_a_second_ctrl_c_ends(number):
  with subprocess.Popen(
    [sys.executable, "-c", WAIT],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 128 + signal.SIGINT
    first, second = process.stderr.read().splitlines()
  assert first.startswith("Stopping after this step")
  assert second == "Ended; the last checkpoint is kept."


@pytest.fixture
def forgot(tmp_path):
  """Returns the workdir of a run with three edits and an export."""
  edits_toy.make(tmp_path)
  return tmp_path


def swap(workdir):
  one, two = (workdir / "edits" / f"stage_{n}.npz" for n in (0, 1))
  other = one.read_bytes()
  one.write_bytes(two.read_bytes())
  two.write_bytes(other)


def scale_of_nan(workdir):
  path = workdir / "edits" / "stage_0.npz"
  with np.load(path) as file:
    arrays = {**file, "scale": np.float32("nan")}
  np.savez(path, **arrays)


def other_export(workdir):
  folder = workdir / "export"
  with np.load(folder / "params.npz") as file:
    arrays = {name: array + 1 for name, array in file.items()}
  np.savez(folder / "params.npz", **arrays)


def export_of_another_run(workdir):
  checksums.note(workdir / "export", weights=8)


def no_checksums(workdir):
  (workdir / "edits" / checksums.FILE).unlink()


def checksums_cut(workdir):
  path = workdir / "edits" / checksums.FILE
  path.write_text(path.read_text()[:30])


DAMAGES = {
  swap: "stage_0.npz does not match its checksum",
  scale_of_nan: "stage_0.npz does not match its checksum",
  other_export: "params.npz does not match its checksum",
  export_of_another_run: "edits and the export .* are of two runs",
  no_checksums: "checksums.json is missing",
  checksums_cut: "checksums.json is damaged",
}


def test_edits_and_export_are_those_that_the_run_wrote(forgot, tmp_path):
  edits_lib.undo(forgot, [0])
  for number, (damage, message) in enumerate(DAMAGES.items()):
    workdir = forgot.parent / f"{forgot.name}-{number}"
    shutil.copytree(forgot, workdir)
    damage(workdir)
    with pytest.raises(ValueError, match=message):
      edits_lib.undo(workdir, [0])


@pytest.mark.parametrize("name", export.FILES)
def test_each_file_of_an_export_is_checked(forgot, name):
  path = forgot / "export" / name
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  # A name in checksums.json that changes is that of a file that is missing.
  with pytest.raises((ValueError, FileNotFoundError), match="export/"):
    export.read(forgot / "export")


@pytest.mark.parametrize("name", ["params.npz", "model.safetensors"])
def test_a_run_starts_from_no_damaged_export(forgot, name):
  model, path = export.build(forgot / "export"), forgot / "export" / name
  initial.load(model, path, seed=0, head="keep")
  data = bytearray(path.read_bytes())
  data[-5] ^= 1  # the last weight's mantissa, or the directory of the archive
  path.write_bytes(data)
  with pytest.raises(ValueError, match=f"{name} does not match its checksum"):
    initial.load(model, path, seed=0, head="keep")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xfe"])
def test_a_retrained_run_of_a_damaged_config_is_named(tmp_path, content):
  (tmp_path / "export").mkdir()
  (tmp_path / "export" / "params.npz").touch()
  (tmp_path / "config.json").write_bytes(content)
  with pytest.raises(ValueError, match="config.json cannot be read .*retrain"):
    export.retrained(tmp_path, {}, {})


BAD_LEAVES = {
  "NaN": (np.float32([[1, np.nan]]), "holds NaN or infinity in 'w'"),
  "infinity": (np.float32([[1, np.inf]]), "holds NaN or infinity in 'w'"),
  "beyond float32": (np.float64([[1, 1e300]]), "holds NaN or infinity in 'w'"),
  "complex": (np.complex64([[1, 2]]), "holds complex64 in 'w'"),
  "bool": (np.array([[True, False]]), "holds bool in 'w'"),
  "integers": (np.int32([[1, 2]]), "holds int32 in 'w'"),
  "text": (np.array([["1", "2"]]), "holds <U1 in 'w'"),
}


@pytest.mark.parametrize(
  ("leaf", "message"), BAD_LEAVES.values(), ids=BAD_LEAVES
)
def test_weights_are_finite_real_numbers(tmp_path, leaf, message):
  template = {"w": np.zeros((1, 2), np.float32)}
  path = tmp_path / "weights.npz"
  np.savez(path, w=np.float16([[1, 2]]))
  assert pretrained.load(path, template)["w"].tolist() == [[1, 2]]
  np.savez(path, w=leaf)
  with pytest.raises(ValueError, match=message):
    pretrained.load(path, template)


def _safetensors(header, data=b"", length=None):
  text = json.dumps(header).encode() if isinstance(header, dict) else header
  size = len(text) if length is None else length
  return size.to_bytes(8, "little") + text + data


def _entry(**changes):
  entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
  return {"w": {**entry, **changes}}


MALFORMED = {
  "empty.safetensors": b"",
  "short.safetensors": b"\0" * 5,
  "long header.safetensors": _safetensors(b"{}", length=2**62),
  "no json.safetensors": _safetensors(b"{]"),
  "cut.safetensors": _safetensors(_entry(), b"\0\0"),
  "negative.safetensors": _safetensors(_entry(data_offsets=[-4, 0])),
  "other dtype.safetensors": _safetensors(_entry(dtype="X9"), b"\0" * 4),
  "float8.safetensors": _safetensors(
    _entry(dtype="F8_E4M3", data_offsets=[0, 1]), b"\0"
  ),
  "empty.npz": b"",
  "no zip.npz": b"PK\x03\x04 and no more",
  "one array.npz": b"\x93NUMPY\x01\x00" + (10).to_bytes(2, "little"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_weights_are_named_in_one_line(tmp_path, name):
  path = tmp_path / name
  path.write_bytes(MALFORMED[name])
  with pytest.raises(ValueError, match=re.escape(str(path))) as error:
    pretrained.load(path, {"w": np.zeros((1,), np.float32)})
  assert "\n" not in str(error.value)


def test_a_header_that_claims_terabytes_is_named(tmp_path):
  header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2**44,)}"
  header = header.replace(b"2**44", str(2**44).encode()).ljust(117) + b"\n"
  size = len(header).to_bytes(2, "little")
  path = tmp_path / "huge.npz"
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("w.npy", b"\x93NUMPY\x01\x00" + size + header)
  with pytest.raises(ValueError, match="huge.npz"):
    pretrained.load(path, {"w": np.zeros((1,), np.float32)})


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b'{"a": 1}'])
def test_tables_name_damaged_results(tmp_path, content):
  (tmp_path / "results.json").write_bytes(content)
  with pytest.raises(SystemExit, match=f"{tmp_path}/results.json") as error:
    tables.main([str(tmp_path)])
  assert "\n" not in str(error.value)


def test_tables_name_what_is_missing(tmp_path, done):
  record = json.loads((done / "results.json").read_text())
  for key in ("matrix", "final", "wall_seconds"):
    left = {**record, key: "x"}
    (tmp_path / "results.json").write_text(json.dumps(left))
    with pytest.raises(SystemExit, match=f"are damaged: '{key}' is missing or"):
      tables.main([str(tmp_path)])


def test_edits_of_a_class_without_a_name_are_refused(forgot):
  (forgot / "results.json").write_text(json.dumps({"classes": ["ant", "bee"]}))
  with pytest.raises(SystemExit, match="forgot class 3, .* has 2 classes"):
    edits_command.main([str(forgot)])
  (forgot / "results.json").write_text("[]")
  with pytest.raises(SystemExit, match="results.json cannot be read"):
    edits_command.main([str(forgot)])


def make_weights(workdir):
  path = workdir / "export" / "params.npz"
  path.parent.mkdir(parents=True)
  path.write_bytes(b"weights")


@pytest.mark.parametrize("content", [b"", b"0" * 64, b"\xff\xfe"])
def test_the_cache_of_weights_is_made_again(tmp_path, caplog, content):
  made_once.weights(tmp_path, make_weights, checksums.of)
  shutil.rmtree(tmp_path / "run")
  (tmp_path / "params.sha256").write_bytes(content)
  path = made_once.weights(tmp_path, make_weights, checksums.of)
  assert "does not match params.sha256" in caplog.text
  assert (tmp_path / "params.sha256").read_text() == checksums.of(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe"])
def test_a_cached_run_writes_a_damaged_config_again(
  tmp_path, monkeypatch, caplog, content
):
  monkeypatch.setattr(made_once, "CACHE", tmp_path)
  asked = tiny()

  def execute(config, workdir, mesh):
    assert config is asked and mesh.devices.size
    (workdir / "checkpoints" / "1").mkdir(parents=True)
    workdirs.claim(workdir, json.loads(config.to_json()))
    if not content_written:
      content_written.append((workdir / "config.json").write_bytes(content))
      raise OSError("the disk is full")
    make_weights(workdir)

  content_written = []
  with pytest.raises(OSError):
    made_once.upstream("toy", asked, execute)
  shutil.rmtree(next(tmp_path.glob("toy-*")) / "run" / "checkpoints")
  assert made_once.upstream("toy", asked, execute).endswith("params.npz")
  assert "config.json cannot be read" in caplog.text
