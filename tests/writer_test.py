"""What people see: TensorBoard, tables, and a loss that is not a number."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import main
from configs import cifar100_gaussian_l2p
from configs import core50_l2p
from configs import digits_l2p
from libml.results import pictures
from libml.results import tables
from libml.results import writer as writer_lib
from methods import METHODS

# What a method may report: any names, numbers and pictures.
REPORT = {
  "spread": 0.25,
  "seen_images": 1234,
  "lean": {"left": -1.0, "right": 2.0},
  "nothing": {},
  "avg_acc": 7.5,  # the name of a summary, too
}


def report(method, state):
  """Returns REPORT as a method may give it: scalars of NumPy and of jax."""
  del method, state
  return {
    **REPORT,
    "spread": np.float32(0.25),
    "lean": {"left": jnp.float32(-1.0), "right": 2.0},
  }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Returns the workdir of a finished smoke run, whose method has a report."""
  workdir = tmp_path_factory.mktemp("run")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(METHODS["l2p"], "report", report)
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


def test_a_report_of_any_names_reaches_the_table_and_tensorboard(run, capsys):
  record = json.loads((run / "results.json").read_text())
  assert record["reports"] == 3 * [REPORT]
  tags = set(_tags(run).Tags()["tensors"])
  assert {"spread", "seen_images", "lean"} <= tags and "nothing" not in tags
  assert {"avg_acc", "report/avg_acc"} <= tags
  tables.main([str(run)])
  _, _, header, _, *rows = capsys.readouterr().out.splitlines()
  # "avg_acc" is a column already.
  assert header.split()[-6:] == "spread seen reported avg acc s".split()
  shown = [row.split()[-4:-1] for row in rows[:3]]
  assert shown == 3 * [["0.25", "1,234", "7.5"]]


def _record(test_sets, stages, **figures):
  """Returns results in which every metric is 100 %."""
  matrix = np.triu(np.ones((len(test_sets), len(stages)))).tolist()
  row = {"avg_acc": 1.0, "curve_mean_acc": 1.0, **figures}
  readings = ("accuracy", "accuracy_batchwise")
  return {
    "name": "cifar10_deit_dualprompt",
    "figure": "accuracy",
    "axes": {
      "test_set": test_sets,
      "stage": list(range(len(stages))),
      "stage_name": stages,
    },
    "matrix": {"accuracy": matrix},
    "summary": {k: len(stages) * [row] for k in readings},
    "reports": len(stages) * [{}],
    "wall_seconds": 123456.7,
  }


def _shown(records, capsys):
  tables.show(records)
  return capsys.readouterr().out


FIVE = ("cifar10", "mnist", "svhn_cropped", "not_mnist", "fashion_mnist")


@pytest.mark.parametrize(
  "stages",
  [
    *([f"task {i}" for i in range(n)] for n in (1, 5, 10, 20)),
    [f"task {i}: {name}" for i, name in enumerate(FIVE)],
    [f"task {i}: domainnet/{name}" for i, name in enumerate("abcdefgh")],
  ],
  ids=len,
)
def test_tables_fit_a_line(stages, capsys):
  test_sets = [f"task_{i}" for i in range(len(stages))]
  record = _record(test_sets, stages, forgetting=1.0)
  shown = _shown([record, record], capsys)
  assert "…" not in shown and "by vote" in shown
  lines = [line for line in shown.splitlines() if "100.0" in line]
  assert len(lines) == len(stages) + 2
  assert stages[-1].removeprefix("task ") in lines[len(stages) - 1]


@pytest.mark.parametrize("measured", [8, 20])
def test_one_test_set_has_no_columns_of_tasks(measured, capsys):
  stages = [f"stage {10 * (i + 1)}" for i in range(measured)]
  shown = _shown([_record(["test"], stages)], capsys)
  assert "forgetting" not in shown and "augmented" not in shown
  lines = [line.split() for line in shown.splitlines() if "100.0" in line]
  # Stage and its number, avg_acc, curve mean, by vote.
  assert [len(line) for line in lines] == measured * [5]


def test_augmented_figure_has_a_column_of_its_own(capsys):
  record = _record(["test"], ["task 0: s1"], augmented_avg_acc=0.123)
  proper = _record(["test"], ["task 0: s1"])
  shown = _shown([record, proper], capsys)
  assert shown.count("augmented") == 2 and shown.count("12.3") == 2


@pytest.mark.parametrize(
  ("test_sets", "stages"), [(1, 20), (1, 8), (5, 5), (8, 8), (10, 10)]
)
def test_matrix_is_drawn_cell_by_cell(test_sets, stages):
  matrix = np.random.default_rng(0).uniform(size=(test_sets, stages))
  if test_sets == stages:
    matrix[np.tril_indices(test_sets, -1)] = np.nan
  rows = [f"task_{i}" for i in range(test_sets)]
  columns = [f"stage {10 * j}" for j in range(stages)]
  figure = pictures.matrix(matrix, "title", rows=rows, columns=columns)
  (axes,) = figure.axes
  for names, wanted in (
    (axes.get_xticklabels(), columns),
    (axes.get_yticklabels(), rows),
  ):
    assert [name.get_text() for name in names] == wanted
  drawn = {t.get_position(): t.get_text() for t in axes.texts}
  assert drawn == {
    (j, i): f"{100 * value:.0f}"
    for (i, j), value in np.ndenumerate(matrix)
    if not np.isnan(value)
  }


@pytest.fixture(scope="module")
def single(tmp_path_factory):
  """Returns the workdirs of runs with one test set: domains, and task-free."""
  workdirs = {}
  for module in (core50_l2p, cifar100_gaussian_l2p):
    config = module.get_config("smoke")
    config.model.depth = 1
    config.preprocess.train = "random_resized_crop"
    workdirs[config.name] = tmp_path_factory.mktemp(config.name)
    main.execute(config, workdirs[config.name])
  return workdirs


def test_one_test_set_has_its_own_tags(single):
  tags = set(_tags(single["core50_l2p"]).Tags()["tensors"])
  for name in (
    "accuracy_test",
    "accuracy_test_batchwise",
    "accuracy_test_augmented",
    "avg_acc",
    "augmented_avg_acc",
    "curve_mean_acc",
    "matrix",
    "prompt_usage/test",
  ):
    assert name in tags
  for name in ("forgetting", "backward", "learning_acc", "accuracy_0"):
    assert name not in tags


def test_augmented_test_sees_other_pixels(single):
  record = json.loads((single["core50_l2p"] / "results.json").read_text())
  for row in record["test_sets"]:
    proper, augmented = row["test"][""], row["test_augmented"][""]
    assert proper["count"] == augmented["count"] == 60
    assert proper["loss"] != augmented["loss"]


def test_stages_without_test_sets_leave_no_gaps(single):
  workdir = single["cifar100_gaussian_l2p"]
  record = json.loads((workdir / "results.json").read_text())
  assert record["stages_done"] == 6
  assert [bool(row) for row in record["test_sets"]] == 2 * [False, False, True]
  assert record["axes"] == {
    "test_set": ["test"],
    "stage": [2, 5],
    "stage_name": ["stage 3", "stage 6"],
  }
  (accuracies,) = record["matrix"]["accuracy"]
  assert accuracies == [r["avg_acc"] for r in record["summary"]["accuracy"]]
  steps = [e.step for e in _tags(workdir).Tensors("avg_acc")]
  assert steps == [3, 6]


def test_tables_without_results_say_so(tmp_path):
  with pytest.raises(SystemExit, match="No results in"):
    tables.main([str(tmp_path)])


def test_window_means_and_names_the_first_bad_step():
  window = writer_lib.Window(stage=3)
  window.add(10, {"loss": jnp.float32(1.0)})
  window.add(11, {"loss": jnp.float32(3.0)})
  assert window.read() == {"loss": 2.0}
  window.add(12, {"loss": jnp.float32(np.nan)})
  with pytest.raises(FloatingPointError, match="Step 13, in stage 4"):
    window.read()
