"""The benchmarks run, and say what they measured."""

import json
import pathlib
import re
import runpy
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMOKE = "configs/cifar100_dualprompt.py:smoke"


@pytest.fixture
def run(monkeypatch, capsys):
  """Returns a runner of a script, which returns what it prints."""
  monkeypatch.syspath_prepend(ROOT / "benchmarks")

  def start(script, *arguments):
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(f"benchmarks/{script}.py", run_name="__main__")
    return capsys.readouterr().out

  return start


@pytest.mark.parametrize(
  "script, steps",
  [("train_step", ["train"]), ("evaluate", ["evaluate, cached", "evaluate"])],
)
def test_a_step_of_a_config_is_measured(run, script, steps):
  printed = run(
    script, SMOKE, "--steps=1", "--dtype=bfloat16", "--batch_size=6",
    "--set=method.pool_size=7",
  )  # fmt: skip
  lines = [json.loads(line) for line in printed.splitlines()]
  assert [line["step"] for line in lines] == steps
  for line in lines:
    assert line["batch_size"] == 6 and line["dtype"] == "bfloat16"
    assert line["images_per_second"] > 0 and line["device_bytes"] > 0
    assert line["flop"] > 0 and line["matmul_gflops"]["wall"] > 0
    assert line["versions"]["jax"]
  if steps[1:]:  # the query pass is what the cache saves
    assert lines[0]["flop"] < 0.8 * lines[1]["flop"]


def test_what_lora_sub_adds_is_measured(run):
  printed = run(
    "lora_sub", "configs/cifar100_lora_sub.py:smoke", "--steps=1",
    "--num_classes=6", "--known=4",
  )  # fmt: skip
  found = json.loads(printed)
  assert found["known"] == 4
  parts = found["projection"]["wall"] + found["triplet"]["wall"]
  share = found["share_of_projection_and_triplet"]["wall"]
  assert share == pytest.approx(parts / found["step"]["wall"], rel=0.05)
  assert found["moments_of_a_batch"]["wall"] > 0
  assert found["eigendecompositions"]["wall"] > 0


def test_what_the_proximal_step_costs_is_measured(run):
  printed = run("proximal", "configs/digits_gs_lora.py:smoke", "--steps=1")
  found = json.loads(printed)
  assert found["groups"] > 0 and found["parameters"] > 0
  share = found["proximal"]["wall"] / found["step"]["wall"]
  assert found["share_of_proximal"]["wall"] == pytest.approx(share, rel=0.05)
  assert found["adamw"]["wall"] > 0
  with pytest.raises(SystemExit, match="'dualprompt' has no lasso"):
    run("proximal", SMOKE, "--steps=1")


def test_importing_the_benchmarks_leaves_tensorflow_alone():
  check = (
    "import sys; sys.path.insert(0, 'benchmarks'); import evaluate, lora_sub;"
    " print({'tensorflow', 'tensorflow_datasets', 'clu'} & sys.modules.keys())"
  )
  done = subprocess.run(
    [sys.executable, "-c", check],
    cwd=ROOT, check=True, capture_output=True, text=True,
  )  # fmt: skip
  assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["configs/none.py"], "There is no config file 'configs/none.py'"),
    ([SMOKE, "--set=method.top=1"], "does not take .*method.top"),
    ([SMOKE, "--steps=0"], "steps=0 must be at least 1"),
    ([SMOKE, "--known=2"], "known=2 needs a method with prototypes"),
  ],
)
def test_bad_command_is_one_line(run, arguments, message):
  with pytest.raises(SystemExit) as stop:
    run("train_step", *arguments)
  assert re.search(message, str(stop.value))
  assert "\n" not in str(stop.value)


def test_peers_times_our_side_without_torch(run):
  printed = run(
    "peers", "--sides", "ours", "--methods", "l2p", "--dtypes", "float32",
    "--rounds=1", "--batch_size=2", "--image_size=8", "--variant=smoke",
  )  # fmt: skip
  found = json.loads(printed.splitlines()[-1])["peers"]
  assert [row["step"] for row in found] == ["train", "evaluate"]
  assert all(row["seconds"]["ours"]["wall"] > 0 for row in found)
