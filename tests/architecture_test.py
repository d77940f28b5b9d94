"""Who may import whom, and what no file may do, read from the sources."""

import ast
import pathlib
import subprocess
import sys

import pytest

from libml import datasets
from methods import METHODS

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("configs", "libml", "methods", "models")
SOURCES = ["main.py"] + [
  path.relative_to(ROOT).as_posix()
  for package in PACKAGES
  for path in sorted((ROOT / package).rglob("*.py"))
]
TESTS = sorted(
  p.relative_to(ROOT).as_posix() for p in ROOT.glob("tests/**/*.py")
)
PROJECT = (*PACKAGES, "main")
TENSORFLOW = ("tensorflow", "tensorflow_datasets", "clu")

# Folder -> what its files may import beside the standard library.
ALLOWED = {
  "configs": {"configs", "ml_collections"},
  "models": {"models", "jax", "flax", "numpy", "safetensors", "ml_dtypes"},
  "methods": {
    "methods", "libml", "models", "jax", "flax", "numpy", "optax"
  },
}  # fmt: skip

# File -> what it may import, too.
ALSO = {
  "models/convert.py": {"torch"},
  "models/edits/__main__.py": {"rich"},
}


def tree(source):
  return ast.parse((ROOT / source).read_text())


def imports(node, *, everywhere=True):
  """Returns the modules that a file imports: all, or only when it is."""
  found = set()
  for child in ast.walk(node) if everywhere else node.body:
    if isinstance(child, ast.Import):
      found |= {alias.name for alias in child.names}
    elif isinstance(child, ast.ImportFrom):
      assert not child.level, "imports name their package"
      found |= {f"{child.module}.{alias.name}" for alias in child.names}
  return found


def tops(modules):
  return {module.split(".")[0] for module in modules}


def of(folder):
  return [source for source in SOURCES if source.startswith(f"{folder}/")]


def test_sources_are_found():
  assert len(SOURCES) > 40 and "main.py" in SOURCES
  assert all(of(folder) for folder in PACKAGES)


@pytest.mark.parametrize("folder", ALLOWED)
def test_folder_imports_only_what_it_may(folder):
  for source in of(folder):
    found = tops(imports(tree(source))) - set(sys.stdlib_module_names)
    assert found <= ALLOWED[folder] | ALSO.get(source, set()), source


def test_libml_knows_no_method_model_or_config():
  for source in of("libml"):
    assert tops(imports(tree(source))) & set(PROJECT) <= {"libml"}, source


def test_methods_know_only_the_base_and_their_own_parts():
  for source in of("methods"):
    if source != "methods/__init__.py":
      found = {m for m in imports(tree(source)) if m.startswith("methods.")}
      assert all(m.startswith("methods.parts.") for m in found), source


def test_nobody_imports_main():
  for source in SOURCES:
    assert "main" not in tops(imports(tree(source))), source


def test_orbax_stays_in_one_file():
  found = [s for s in SOURCES if "orbax" in tops(imports(tree(s)))]
  assert found == ["libml/train/checkpoint.py"]


def test_tensorflow_is_imported_at_once_by_the_pipeline_alone():
  found = {
    source
    for source in SOURCES
    if tops(imports(tree(source), everywhere=False)) & set(TENSORFLOW)
  }
  builders = {source for source in of("libml") if "/builders/" in source}
  assert found <= builders | {
    f"libml/images/{name}.py"
    for name in ("augment", "image_ops", "mixing", "preprocess")
  } | {"libml/pipeline/streams.py"}


@pytest.mark.parametrize(
  "module",
  ["main", "methods", "models", "libml.train.run", "libml.train.steps"],
)
def test_import_leaves_tensorflow_alone(module):
  check = f"import sys, {module}; print({set(TENSORFLOW)} & sys.modules.keys())"
  done = subprocess.run(
    [sys.executable, "-c", check],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  )
  assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("source", [*SOURCES, *TESTS])
def test_no_file_is_long(source):
  assert len((ROOT / source).read_text().splitlines()) <= 400


def test_no_branch_on_the_name_of_a_method_or_data_set():
  names = {*METHODS, *datasets.DATASETS}
  for source in SOURCES:
    if source.startswith("configs/"):
      continue
    for node in ast.walk(tree(source)):
      if isinstance(node, ast.Compare | ast.match_case):
        words = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
        assert not words & names, f"{source}, line {node.lineno}"


def test_nothing_is_unpickled():
  for source in SOURCES:
    assert not tops(imports(tree(source))) & {"pickle", "dill", "joblib"}, (
      source
    )
    for node in ast.walk(tree(source)):
      if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
        assert ast.unparse(node.value) == "False", source
