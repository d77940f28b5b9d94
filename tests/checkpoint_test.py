"""Checkpoints hold what changes, and no damage to one goes unseen."""

import gc
import json
import shutil

import jax
import numpy as np
import pytest
from toy import tiny

import main
from libml.train import weights
from libml.train.walk import Interrupted
from models import pretrained

# A failed restore leaves coroutines that orbax (0.12) never awaits.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)

# A stage has 8 steps and a checkpoint every 3, its end another one. Here the
# third has begun.
STOP = 8 + 3 + 8 + 6 + 5


def matrix(workdir):
  return json.loads((workdir / "results.json").read_text())["matrix"]


def checkpoints(workdir):
  """Returns the folders of the checkpoints, the newest first."""
  folders = (workdir / "checkpoints").glob("[0-9]*")
  return sorted(folders, key=lambda folder: -int(folder.name))


@pytest.fixture(autouse=True)
def collect():
  """Lets those coroutines go while their warning is ignored."""
  yield
  gc.collect()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Returns files of two models that differ in all leaves."""
  folder = tmp_path_factory.mktemp("weights")
  for seed in (0, 1):
    model = main.build_method(tiny(seed=seed), 6, 3).model
    params, _ = weights.first(tiny(seed=seed), model)
    pretrained.save(folder / f"{seed}.npz", params)
  return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory):
  """Returns the workdir of a run that was stopped in its last stage."""
  workdir = tmp_path_factory.mktemp("half")
  asked = iter(range(STOP))
  with pytest.raises(Interrupted):
    main.execute(tiny(), workdir, lambda: next(asked) == STOP - 1)
  return workdir


@pytest.fixture(scope="module")
def final(half, tmp_path_factory):
  """Returns the accuracies with which that run ends, undisturbed."""
  workdir = tmp_path_factory.mktemp("final") / "run"
  shutil.copytree(half, workdir)
  main.execute(tiny(), workdir)
  return matrix(workdir)


def arrays(folder):
  return [path for path in folder.rglob("d/*") if path.is_file()]


def truncate(folder):
  for path in arrays(folder):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(folder):
  # All files: which of them the newest leaves lie in is orbax's matter.
  for path in arrays(folder):
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle // 2 : middle] = bytes(middle - middle // 2)
    path.write_bytes(data)


def empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


def cut_json(folder):
  path = folder / "progress" / "metadata"
  path.write_text(path.read_text()[:40])


def mix_up(folder):
  """Puts another checkpoint's arrays there: sound to all but the checksum."""
  _, before = checkpoints(folder.parent.parent)
  shutil.rmtree(folder / "state")
  shutil.copytree(before / "state", folder / "state")


def change_digit(folder):
  path = folder / "progress" / "metadata"
  record = json.loads(path.read_text())
  record["progress"]["rows"][0]["task_0"][""]["accuracy"] /= 2
  path.write_text(json.dumps(record))


def rename_key(folder):
  path = folder / "progress" / "metadata"
  path.write_text(path.read_text().replace('"steps"', '"stepz"'))


DAMAGES = (truncate, zero, empty, cut_json, change_digit, rename_key, mix_up)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_falls_back(tmp_path, half, final, caplog, damage):
  workdir = tmp_path / "run"
  shutil.copytree(half, workdir)
  newest, before = checkpoints(workdir)
  damage(newest)
  main.execute(tiny(), workdir)
  assert f"Checkpoint {newest.name} cannot be used" in caplog.text
  assert matrix(workdir) == final
  assert before.exists() or int(checkpoints(workdir)[0].name) > int(newest.name)


def test_no_sound_checkpoint_is_an_error(tmp_path, half):
  workdir = tmp_path / "run"
  shutil.copytree(half, workdir)
  for folder in checkpoints(workdir):
    cut_json(folder)
  with pytest.raises(ValueError, match="No checkpoint can be used.*Remove the"):
    main.execute(tiny(), workdir)


def test_checkpoints_hold_no_frozen_weight(half):
  text = (checkpoints(half)[0] / "state" / "_METADATA").read_text()
  names = [
    "/".join(part["key"] for part in entry["key_metadata"])
    for entry in json.loads(text)["tree_metadata"].values()
  ]
  params = {n for n in names if n.startswith("params/")}
  assert params == {
    "params/head/bias",
    "params/head/kernel",
    "params/prompt_pool/key",
    "params/prompt_pool/prompt",
  }
  assert not [n for n in names if "Transformer" in n or "embedding" in n]


def test_other_frozen_weights_are_refused(tmp_path, files):
  config = tiny(init_checkpoint=str(tmp_path / "weights.npz"))
  shutil.copy(files / "0.npz", tmp_path / "weights.npz")
  asked = iter(range(STOP))
  with pytest.raises(Interrupted):
    main.execute(config, tmp_path, lambda: next(asked) == STOP - 1)
  shutil.copy(files / "1.npz", tmp_path / "weights.npz")
  with pytest.raises(ValueError, match="frozen weights are not .*old file"):
    main.execute(config, tmp_path)
  shutil.copy(files / "0.npz", tmp_path / "weights.npz")
  assert main.execute(config, tmp_path)["finished"]


def test_last_good_checkpoint_is_kept(tmp_path, caplog):
  caplog.set_level("INFO", "palimpsest")
  config = tiny()
  config.optimizer.head.lr = 1e30
  config.checkpoint.every_steps = 1
  for _ in range(2):
    with pytest.raises(FloatingPointError, match=r"Step (\d+), in stage 1"):
      main.execute(config, tmp_path)
  assert "Resuming in stage 1" in caplog.text
  assert "cannot be used" not in caplog.text


def test_checkpoints_of_two_devices_serve_on_one(
  tmp_path, half, final, monkeypatch
):
  workdir = tmp_path / "run"
  shutil.copytree(half, workdir)
  one = jax.make_mesh(
    (1, 1),
    ("data", "model"),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:1],
  )
  monkeypatch.setattr(main.sharding, "make_mesh", lambda **_: one)
  record = main.execute(tiny(), workdir)
  assert record["devices"]["count"] == 1
  ours, theirs = record["matrix"]["accuracy"], final["accuracy"]
  np.testing.assert_allclose(
    np.asarray(ours, float), np.asarray(theirs, float), atol=0.05
  )


def test_changed_images_are_refused(tmp_path):
  class Stop:
    calls = 0

    def __call__(self):
      self.calls += 1
      return self.calls == 3

  data = tmp_path / "images.npz"
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(6, dtype=np.int32), 8)

  def write():
    images = rng.integers(0, 256, (48, 8, 8, 3)).astype(np.uint8)
    np.savez(data, x_train=images, y_train=labels, x_test=images, y_test=labels)

  write()
  config = tiny()
  config.dataset = {"name": "npz", "path": str(data)}
  with pytest.raises(Interrupted):
    main.execute(config, tmp_path / "run", Stop())
  write()
  with pytest.raises(ValueError, match="images are not those"):
    main.execute(config, tmp_path / "run")
