"""What a person reads of runs that forget."""

import io

from rich import console

from libml.results import tables


def record(name, accuracy, reports):
  """Returns the results of two requests; accuracies of 0, 1 and kept."""
  rows = [{"acc_retain": 0.9}]
  rows += [
    {"acc_forget": 0.1, "acc_retain": 0.8, "drop_retain": 0.1, "h_mean": 0.7},
    {
      "acc_forget": accuracy,
      "acc_retain": 0.85,
      "drop_retain": -0.05,
      "h_mean": 0.5,
      "acc_old": 0.02,
    },
  ]
  return {
    "name": name,
    "figure": "accuracy",
    "matrix": {
      "accuracy": [[0.9, 0.1, 0.02], [0.8, 0.7, accuracy], [0.95] * 3]
    },
    "summary": {"accuracy": rows},
    "axes": {
      "test_set": ["request_0", "request_1", "kept"],
      "stage": [-1, 0, 1],
      "stage_name": ["before", "request 0: a", "request 1: b, c"],
    },
    "reports": reports,
    "stage_seconds": [12.0, 7.0],
    "wall_seconds": 33.0,
  }


EDITS = [
  {"zero_groups": 3, "groups": 6, "touched_weights": 98304},
  {"zero_groups": 0, "groups": 6, "touched_weights": 196608},
]


def printed(table):
  """Returns the cells of each line, without the rules."""
  out = io.StringIO()
  console.Console(file=out, width=120).print(table)
  return [line.split() for line in out.getvalue().splitlines()]


def test_a_run_shows_each_request_and_its_edit():
  lines = printed(tables.run_table(record("run", 0.3, EDITS)))
  assert "before and after each request" in " ".join(lines[0])
  assert lines[2][:4] == ["after", "0", "1", "kept"]
  assert lines[2][4:] == [
    "forget", "retain", "old", "H-mean", "zero", "touched", "s",
  ]  # fmt: skip
  assert lines[4] == ["before", "90.0", "80.0", "95.0", "90.0"]
  assert lines[5][-4:] == ["70.0", "3/6", "98,304", "12"]
  assert lines[6][-6:] == ["85.0", "2.0", "50.0", "0/6", "196,608", "7"]


def test_runs_beside_each_other_show_the_worst_request():
  runs = [record("a", 0.3, EDITS), record("b", 0.05, [{}, {}])]
  lines = printed(tables.summary_table(runs))
  assert "Over all requests" in " ".join(lines[0])
  # The largest rest, the largest loss, the last old, the mean H.
  assert lines[4] == [
    "a", "30.0", "10.0", "2.0", "60.0", "3", "0", "of", "6", "33",
  ]  # fmt: skip
  assert lines[5] == ["b", "10.0", "10.0", "2.0", "60.0", "33"]


def test_only_a_count_is_a_part_of_a_count_of_the_same_things():
  reports = [
    {"loss": 0.5, "head_loss": 0.3, "tries": 2, "lost_tries": None},
    {"loss": 1, "head_loss": None, "tries": {"a": 1}, "lost_tries": 1},
  ]
  lines = printed(tables.run_table(record("run", 0.3, reports)))
  # Loss, head loss, tries, lost (tries), seconds.
  assert lines[2][-6:] == "loss head loss tries lost s".split()
  assert lines[5][-4:] == ["0.5", "0.3", "2", "12"]
  assert lines[6][-3:] == ["1", "1", "7"]


def test_whatever_a_method_reports_is_a_column():
  reports = [
    {
      "mean_gap": 0.12345,
      "pruned_heads": 3,
      "heads": 12,
      "kept_images": 1234,
      "other_images": 5,
      "old": 7,
      "norms": {"a": 1.0},
    },
    {"mean_gap": 2.0, "settled": True},
  ]
  lines = printed(tables.run_table(record("run", 0.3, reports)))
  # "kept" and "old" are columns already.
  names = "mean gap pruned kept images other reported old s".split()
  assert lines[2][-9:] == names
  assert lines[5][-6:] == ["0.1235", "3/12", "1,234", "5", "7", "12"]
  assert lines[6][-2:] == ["2", "7"]
  # Of the last request alone, so others have a cell less.
  runs = [record("a", 0.3, reports), record("b", 0.3, EDITS)]
  lines = printed(tables.summary_table(runs))
  assert lines[2][-3:] == ["pruned", "zero", "seconds"]
  assert lines[4][-4:] == ["3", "of", "12", "33"]
  assert lines[5][-5:] == ["3", "0", "of", "6", "33"]
