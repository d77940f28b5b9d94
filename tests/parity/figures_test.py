"""Every stored file of figures is read whole by one test module."""

import ast
import collections
import pathlib

import figures
import numpy as np
import pytest

TESTS = pathlib.Path(__file__).resolve().parent.parent


def claims():
  """Returns {"family/name": test files that name it in their FIGURES}."""
  found = collections.defaultdict(list)
  for path in sorted(TESTS.rglob("*_test.py")):
    for node in ast.parse(path.read_text()).body:
      names = [
        target.id
        for target in getattr(node, "targets", ())
        if isinstance(target, ast.Name)
      ]
      if names == ["FIGURES"]:
        for name in ast.literal_eval(node.value):
          found[name].append(path.name)
  return found


@pytest.fixture
def reader(tmp_path):
  (tmp_path / "family").mkdir()
  np.savez(tmp_path / "family" / "one.npz", **{"in/x": 1, "out/y": 2})
  return figures.Reader(tmp_path)


def test_a_key_is_read_by_its_name_or_its_prefix(reader):
  file = reader("family", "one")
  assert "out/y" in file and len(list(file.items())) == len(file) == 2
  assert file["in/x"] == 1
  assert reader.unread({"family/one": {}}) == [
    "family/one: no test reads 'out/y'"
  ]
  assert reader.unread({"family/one": {"out/*": "a reason"}}) == []
  assert file.part("out/") == {"y": 2}
  assert reader.unread({"family/one": {}}) == []


def test_left_out_keys_that_are_read_are_told(reader, monkeypatch):
  monkeypatch.setattr(figures, "OWN", reader.root)
  reader("family", "one").part("")
  (wrong,) = reader.unread({"family/one": {"out/*": "a reason"}})
  assert wrong == "family/one: 'out/*' is left out, and nothing unread"


def test_a_missing_folder_is_named(monkeypatch, tmp_path):
  monkeypatch.setenv(figures.VARIABLE, str(tmp_path / "none"))
  with pytest.raises(FileNotFoundError, match=r"PALIMPSEST_GOLDEN is '.*none'"):
    figures.folder()
  monkeypatch.setenv(figures.VARIABLE, str(tmp_path))
  assert figures.folder() == tmp_path


def test_cases_are_those_of_the_file(monkeypatch, reader):
  monkeypatch.setenv(figures.VARIABLE, str(reader.root))
  assert figures.cases("family/one", r".*/(.)") == ["x", "y"]
  assert figures.cases("family/one", r"(o.*)/(.)") == [("out", "y")]
  assert figures.cases("family/one", r"grad/(.*)") == []


def test_no_file_is_answered_for_twice():
  assert all(len(modules) == 1 for modules in claims().values())


@pytest.mark.parametrize(
  "family", ["gslora", "l2p", "learning", "lora_sub", "swapping"]
)
def test_every_file_has_a_module_that_answers_for_it(family):
  stored = {f"{family}/{p.stem}" for p in (figures.OWN / family).glob("*.npz")}
  assert stored and stored <= claims().keys()
