"""Who may import whom, and what no file may do, read from the sources."""

import ast
import pathlib
import subprocess
import sys

import breaks
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
PROJECT = (*PACKAGES, "main")
TENSORFLOW = ("tensorflow", "tensorflow_datasets", "clu")

# The import rule: a file imports its own package, or those of lower floors.
FLOORS = (
  ("libml", "libml/images"),
  ("libml/datasets", "libml/devices", "libml/optim", "models"),
  ("libml/pipeline", "libml/problems"),
  ("libml/scenarios",),
  ("libml/audit", "libml/results"),
  ("libml/train",),
  ("methods/parts",),
  ("methods",),
  ("configs",),
  ("main.py",),
)

# Of the functions of main.py and libml.
MOST_LINES = 40  # of a body, its docstring left out
MOST_POSITIONAL = 4  # parameters of a function, and arguments of a call

# Folder -> what its files may import beside Python and the project.
PURE = {
  "configs": {"ml_collections"},
  "models": {"jax", "flax", "numpy", "safetensors", "ml_dtypes"},
  "methods": {"jax", "flax", "numpy", "optax"},
}

# File -> what it may import, too.
ALSO = {
  "models/convert.py": {"torch"},
  "models/edits/__main__.py": {"rich"},
}

# What generic code asks a model for, and so never names.
NAMES_OF_PARTS = (
  *("encoderblock", "MlpBlock", "Dense_", "LayerNorm_", "MultiHead"),
  *("posembed", "Transformer/", '"Transformer"', "head/", '"head"'),
)
# Who may: models, and tables of their names elsewhere.
NAMES_PARTS = {
  f"models/{name}.py"
  for name in ("vit", "face_vit", "encoder", "layers", "heads")
  + ("described", "layouts", "pretrained", "convert", "timm")
}
# A probe has the name, too.
NAMES_PROBES = {"libml/audit/probing.py", "libml/results/audit_table.py"}


def package(source):
  """Returns the package that a file belongs to, a row of FLOORS."""
  folders = [name for floor in FLOORS for name in floor]
  inside = [f for f in folders if source == f or source.startswith(f + "/")]
  return max(inside, key=len)


def floor(source):
  return next(n for n, row in enumerate(FLOORS) if package(source) in row)


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


@pytest.mark.parametrize("folder", PURE)
def test_folder_imports_only_what_it_may(folder):
  for source in of(folder):
    found = tops(imports(tree(source))) - set(sys.stdlib_module_names)
    found -= set(PROJECT)
    assert found <= PURE[folder] | ALSO.get(source, set()), source


def modules():
  """Returns {dotted name: file} of the project."""
  names = {s.removesuffix(".py").replace("/", "."): s for s in SOURCES}
  return {n.removesuffix(".__init__"): s for n, s in names.items()}


def imported(source):
  """Returns the files of the project that a file imports, by name."""
  known, found = modules(), set()
  for name in imports(tree(source)):
    found |= {known.get(name) or known.get(name.rpartition(".")[0])}
  return found - {None}


def test_every_import_goes_to_its_own_package_or_down():
  for source in SOURCES:
    for other in imported(source):
      own = package(source) == package(other)
      assert own or floor(other) < floor(source), f"{source} imports {other}"


def test_every_package_stands_on_one_floor():
  names = [name for row in FLOORS for name in row]
  assert len(names) == len(set(names))
  assert {package(source) for source in SOURCES} == set(names)


def test_a_method_imports_no_other_method():
  rows = [s for s in of("methods") if package(s) == "methods"]
  for source in set(rows) - {"methods/__init__.py"}:
    assert not imported(source) & set(rows), source


def test_each_method_is_in_the_file_of_its_name():
  rows = {s for s in of("methods") if package(s) == "methods"}
  assert rows - {"methods/__init__.py"} == {f"methods/{n}.py" for n in METHODS}
  for name, method in METHODS.items():
    assert method.__module__ == f"methods.{name}"


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
    for name in ("augment", "decoding", "image_ops", "mixing", "preprocess")
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


def nodes(kind):
  """Yields (where, node) of a kind of node in main.py and libml."""
  for source in ("main.py", *of("libml")):
    for node in ast.walk(tree(source)):
      if isinstance(node, kind):
        yield f"{source}, line {node.lineno}", node


def test_no_function_is_long():
  functions = list(nodes(ast.FunctionDef | ast.AsyncFunctionDef))
  assert len(functions) > 400
  for where, node in functions:
    body = node.body[bool(ast.get_docstring(node)) :]
    lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
    assert lines <= MOST_LINES, where


def test_no_function_takes_many_arguments_by_position():
  for where, node in nodes(ast.FunctionDef | ast.AsyncFunctionDef):
    names = [a.arg for a in node.args.posonlyargs + node.args.args]
    assert len({*names} - {"self", "cls"}) <= MOST_POSITIONAL, where
  for where, node in nodes(ast.Call):
    given = [a for a in node.args if not isinstance(a, ast.Starred)]
    assert len(given) <= MOST_POSITIONAL, where


def test_only_problems_name_their_metrics():
  for source in SOURCES:
    if package(source) != "libml/problems":
      assert '"accuracy"' not in (ROOT / source).read_text(), source


def test_no_branch_on_the_name_of_a_method_or_data_set():
  names = {*METHODS, *datasets.DATASETS}
  for source in SOURCES:
    if source.startswith("configs/"):
      continue
    for node in ast.walk(tree(source)):
      if isinstance(node, ast.Compare | ast.match_case):
        words = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
        assert not words & names, f"{source}, line {node.lineno}"


@pytest.mark.parametrize("word", NAMES_OF_PARTS)
def test_generic_code_names_no_part_of_a_model(word):
  generic = {s for s in SOURCES if not s.startswith("configs/")} - NAMES_PARTS
  found = {s for s in generic if word in (ROOT / s).read_text()}
  assert found <= (NAMES_PROBES if word == '"head"' else set())


def test_nothing_is_unpickled():
  for source in SOURCES:
    assert not tops(imports(tree(source))) & {"pickle", "dill", "joblib"}, (
      source
    )
    for node in ast.walk(tree(source)):
      if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
        assert ast.unparse(node.value) == "False", source


def test_every_package_has_a_break_that_can_be_applied():
  inner = {"libml/datasets/builders", "models/edits", "benchmarks"}
  folders = {name for row in FLOORS for name in row} | inner
  broken = set()
  for each in breaks.BREAKS:
    text = (ROOT / each.file).read_text()
    assert text.count(each.old) == 1 and each.old != each.new, each
    assert all((ROOT / t).is_file() for t in each.tests if "/" in t), each
    holders = (f for f in folders if f"{each.file}/".startswith(f"{f}/"))
    broken.add(max(holders, key=len))
  assert broken == folders
