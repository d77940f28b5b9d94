"""What people see: TensorBoard, tables, and a loss that is not a number."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import main
from configs import digits_l2p
from libml import reporting
from libml import tables


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Returns the workdir of a finished smoke run."""
  workdir = tmp_path_factory.mktemp("run")
  main.execute(digits_l2p.get_config("smoke"), workdir)
  return workdir


def _tags(workdir):
  from tensorboard.backend.event_processing import event_accumulator

  events = event_accumulator.EventAccumulator(str(workdir), size_guidance={})
  events.Reload()
  return events


def test_tensorboard_has_the_original_tags(run):
  tags = set(_tags(run).Tags()["tensors"])
  for name in (
    "accuracy_0",
    "accuracy_2",
    "accuracy_2_batchwise",
    "avg_acc",
    "avg_acc_batchwise",
    "forgetting",
    "backward",
    "learning_acc",
    "curve_mean_acc",
    "matrix",
    "prompt_usage/task_0",
    "train/loss",
    "train_accuracy",
  ):
    assert name in tags


def test_tensorboard_holds_what_the_results_say(run):
  from tensorboard.util import tensor_util

  record = json.loads((run / "results.json").read_text())
  points = _tags(run).Tensors("avg_acc")
  wanted = [row["avg_acc"] for row in record["summary"]["accuracy"]]
  got = [float(tensor_util.make_ndarray(p.tensor_proto)) for p in points]
  np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_what_has_no_meaning_yet_is_not_written(run):
  assert len(_tags(run).Tensors("forgetting")) == 2  # of three stages


def test_results_say_what_one_must_know(run):
  record = json.loads((run / "results.json").read_text())
  assert record["finished"] and record["stages"] == 3
  assert record["weights"] == {"name": "random", "seed": 42}
  assert record["global_batch_size"] == 8
  assert record["config"]["method"]["name"] == "l2p"
  assert record["versions"]["jax"] and record["devices"]["platform"] == "cpu"
  assert record["data"]["splits"]["test"]["examples"] == 60
  matrix = record["matrix"]["accuracy"]
  assert matrix[1][0] is None and matrix[0][1] is not None
  usage = record["observed"][-1]["task_0"]["prompt_usage"]
  assert sum(usage) == 20 * record["config"]["method"]["top_k"]


def test_tables_show_every_task_and_run(run, capsys):
  tables.main([str(run), str(run)])
  shown = capsys.readouterr().out
  record = json.loads((run / "results.json").read_text())
  assert shown.count("digits_l2p") == 3
  for accuracies in record["matrix"]["accuracy"]:
    assert f"{100 * accuracies[-1]:.1f}" in shown
  voted = record["summary"]["accuracy_batchwise"][-1]["avg_acc"]
  assert f"{100 * voted:.1f}" in shown


@pytest.mark.parametrize("tasks", [1, 5, 10, 20])
def test_tables_fit_a_line(tasks, capsys):
  matrix = np.triu(np.full((tasks, tasks), 1.0)).tolist()
  row = {"avg_acc": 1.0, "forgetting": 1.0, "curve_mean_acc": 1.0}
  record = {
    "name": "cifar10_deit_dualprompt",
    "figure": "accuracy",
    "matrix": {"accuracy": matrix},
    "summary": {k: tasks * [row] for k in ("accuracy", "accuracy_batchwise")},
    "wall_seconds": 123456.7,
  }
  tables.show([record, record])
  shown = capsys.readouterr().out
  assert "…" not in shown and "by vote" in shown
  assert len([line for line in shown.splitlines() if "100.0" in line]) > tasks


def test_tables_without_results_say_so(tmp_path):
  with pytest.raises(SystemExit, match="No results in"):
    tables.main([str(tmp_path)])


def test_window_means_and_names_the_first_bad_step():
  window = reporting.Window(stage=3)
  window.add(10, {"loss": jnp.float32(1.0)})
  window.add(11, {"loss": jnp.float32(3.0)})
  assert window.read() == {"loss": 2.0}
  window.add(12, {"loss": jnp.float32(np.nan)})
  with pytest.raises(FloatingPointError, match="Step 13, in stage 4"):
    window.read()
