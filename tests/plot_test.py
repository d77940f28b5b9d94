"""The picture of finished runs."""

import json

import pytest
from PIL import Image

from libml.results import plot
from libml.results import tables

# Of a run that forgets once; "kept" was not measured before it.
RECORD = {
  "name": "small",
  "figure": "accuracy",
  "final": {"acc_forget": 0.0},
  "test_sets": [],
  "matrix": {"accuracy": [[0.91, 0.0], [None, 0.876]]},
  "axes": {
    "test_set": ["request_0", "kept"],
    "stage_name": ["before", "request 0: cat, dog"],
  },
  "reports": [{}],
  "stage_seconds": [1.0],
  "wall_seconds": 2.0,
  "summary": {"accuracy": [{}, {"acc_forget": 0.0, "h_mean": 0.8923}]},
}


def test_cells_names_and_summary_are_drawn(tmp_path):
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "results.json").write_text(json.dumps(RECORD))
  out, folders = tmp_path / "out.png", [str(tmp_path / n) for n in "ab"]
  plot.main([str(out), *folders])
  with Image.open(out) as image:
    assert image.width > image.height > 100
  figure = plot.draw(tables.read(folders))
  assert len(figure.axes) == 2
  for axes in figure.axes:
    texts = {text.get_text() for text in axes.texts}
    assert texts == {"91", "0", "88", "small: accuracy (%)"}
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["request 0: cat, dog", "kept"]
    assert axes.get_title(loc="left").split() == [
      *("forget", "0.0,", "H-mean", "89.2")
    ]


def test_an_unfinished_run_is_named(tmp_path):
  with pytest.raises(SystemExit, match=f"No results in {tmp_path}"):
    plot.main([str(tmp_path / "out.png"), str(tmp_path)])


def test_results_of_an_earlier_version_are_named(tmp_path):
  record = {**RECORD, "probes": RECORD["test_sets"]}
  del record["test_sets"]
  (tmp_path / "results.json").write_text(json.dumps(record))
  with pytest.raises(SystemExit, match="'test_sets': an earlier version"):
    plot.main([str(tmp_path / "out.png"), str(tmp_path)])
