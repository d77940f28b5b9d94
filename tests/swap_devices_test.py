"""A swap finds the same on one device and on eight."""

import json

import children
import jax
import numpy as np
import pytest
import walks
from swap_tiny import tiny

from libml import trees
from libml.devices import sharding

FSDP = ((r".*", "fsdp:512"),)
SMALL = {"model__depth": 1}


def run(workdir, rules):
  """Runs the swap on all devices; writes its states around each stage."""
  seen = walks.watch(tiny("order=lf", sharding=rules, **SMALL), workdir)
  states = [*seen.begun, *seen.trained, *seen.merged]
  flat = {f"{i}/{k}": x for i, s in enumerate(states) for k, x in s.items()}
  np.savez(workdir / "states.npz", **flat)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Returns a folder with the workdirs one and eight."""
  folder = tmp_path_factory.mktemp("places")
  process = children.start(
    run, folder / "eight", FSDP, log=folder / "eight.log", devices=8
  )
  # One device is there without a process of its own.
  mesh = jax.make_mesh(
    (1, 1),
    ("data", "model"),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:1],
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, "make_mesh", lambda **_: mesh)
    run(folder / "one", ())
  codes, printed = children.finish(process)
  assert codes == [0], printed
  return folder


def record(workdir):
  return json.loads((workdir / "results.json").read_text())


def assert_same(ours, theirs):
  """Compares results: accuracies and counts exactly, losses nearly."""
  assert ours["finished"]
  for key in ("matrix", "summary", "observed", "train_steps"):
    assert ours[key] == theirs[key], key
  assert ours["compiled_steps"] == theirs["compiled_steps"]
  assert set(ours["compiled_steps"].values()) == {1}
  for key in ("test_sets", "reports"):
    for mine, other in zip(ours[key], theirs[key], strict=True):
      mine, other = trees.flatten(mine), trees.flatten(other)
      assert mine.keys() == other.keys()
      for name, value in mine.items():
        np.testing.assert_allclose(
          value, other[name], rtol=1e-3, atol=1e-6, err_msg=name
        )


def test_eight_devices_find_what_one_finds(folder):
  one, eight = (record(folder / name) for name in ("one", "eight"))
  assert one["devices"]["count"] == 1 and eight["devices"]["count"] == 8
  assert_same(eight, one)
  one, eight = (np.load(folder / n / "states.npz") for n in ("one", "eight"))
  assert one.files == eight.files
  for kind in ("memory/start/", "/lora_b"):
    assert any(kind in name and eight[name].any() for name in one.files), kind
  for name in one.files:
    np.testing.assert_allclose(
      eight[name], one[name], rtol=1e-3, atol=1e-5, err_msg=name
    )
