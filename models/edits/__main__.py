"""Shows what past requests changed in a model, and undoes requests.

python -m models.edits WORKDIR
python -m models.edits WORKDIR --without 1 --out FILE.npz
python -m models.edits WORKDIR --only 0,2 --out FOLDER

FILE.npz has the official layout, FILE.safetensors that of model.safetensors in
an export, and FOLDER becomes a new export (models/export.py).
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from rich import box
from rich import console
from rich import table
from rich import text

from libml import trees
from models import checksums
from models import edits as edits_lib
from models import export
from models import pretrained

# Number of classes that a cell of a table names at most.
_MOST_CLASSES = 8


def show(
  edits: Mapping[int, edits_lib.Edit], names: Sequence[str] | None = None
) -> list[console.Group]:
  """Returns a table of the requests, and one of their lasso groups' norms.

  Args:
    edits: Request -> edit.
    names: Names of the classes; None: their ids.

  Raises:
    ValueError: A class has no name.
  """
  summaries = {
    number: edits_lib.summary(edit) for number, edit in edits.items()
  }
  requests = _table()
  requests.add_column("request", justify="right")
  requests.add_column("classes forgotten")
  for column in ("selected", "of groups", "weights changed", "norm"):
    requests.add_column(column, justify="right", no_wrap=True)
  for number, numbers in summaries.items():
    groups = numbers["groups"]
    classes = numbers["classes"]
    if names and max(classes, default=0) >= len(names):
      raise ValueError(
        f"Request {number} forgot class {max(classes)}, but the run has "
        f"{len(names)} classes: edits and results are not those of one run."
      )
    ids = [names[i] if names else str(i) for i in classes]
    requests.add_row(
      str(number),
      _listed(ids),
      str(sum(not group["zero"] for group in groups.values())),
      str(len(groups)),
      f"{numbers['weights_changed']:,}",
      f"{numbers['norm']:.4g}",
    )
  out = [_titled("Edits by request", requests)]
  groups = {g for found in summaries.values() for g in found["groups"]}
  if groups:
    out.append(_group_table(summaries, sorted(groups, key=_natural)))
  return out


def _group_table(
  summaries: Mapping[int, Mapping[str, Any]], groups: Sequence[str]
) -> console.Group:
  out = _table()
  out.add_column("lasso group", no_wrap=True)
  for number in summaries:
    out.add_column(str(number), justify="right", no_wrap=True)
  root = trees.root(groups)
  for group in groups:
    cells = []
    for numbers in summaries.values():
      found = numbers["groups"].get(group, {"zero": False, "change": None})
      change = "" if found["change"] is None else f"{found['change']:.3g}"
      cells.append("0" if found["zero"] else change)
    out.add_row(group.removeprefix(f"{root}/"), *cells)
  return _titled("Norm of scale A B by lasso group and request", out)


def _table() -> table.Table:
  return table.Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _titled(title: str, shown: table.Table) -> console.Group:
  """Returns a table below its title; rich's own wraps at the table's width."""
  return console.Group(text.Text(title, style="bold"), shown)


def _natural(name: str) -> list[str | int]:
  """Returns a sort key by which block_2 comes before block_10."""
  parts = re.split(r"(\d+)", name)
  return [int(part) if part.isdigit() else part for part in parts]


def _listed(names: Sequence[str]) -> str:
  more = len(names) - _MOST_CLASSES
  shown = ", ".join(names[:_MOST_CLASSES])
  return f"{shown} and {more} more" if more > 0 else shown


def _class_names(workdir: pathlib.Path) -> Sequence[str] | None:
  path = workdir / "results.json"
  try:
    record = json.loads(path.read_text()) if path.exists() else {}
    return record.get("classes")
  except (ValueError, AttributeError) as error:
    raise ValueError(
      f"{path} cannot be read ({error}): the command of the run makes it again."
    ) from None


def _numbers(text: str) -> list[int]:
  try:
    return [int(part) for part in text.split(",") if part.strip()]
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text!r} must be numbers of requests, from 0, separated by commas: 0,2"
    ) from None


def _write(
  out: pathlib.Path,
  params: Mapping[str, Any],
  workdir: pathlib.Path,
  left: Mapping[int, edits_lib.Edit],
) -> None:
  """Writes parameters as .npz or .safetensors, or as a new export.

  Args:
    out: Target file or folder.
    params: Parameters after some requests were undone.
    workdir: Of the run.
    left: Request -> edit, of the requests that are not undone.

  Raises:
    ValueError: The target lies in the run's own export, or has another suffix.
  """
  source = workdir / "export"
  for own in (source, workdir / "edits", workdir / "checkpoints"):
    if own.resolve() in (out.resolve(), *out.resolve().parents):
      raise ValueError(
        f"--out {out} lies in the run's own {own.name}, which must not be "
        "overwritten; choose another target."
      )
  if out.suffix == ".npz":
    pretrained.save(out, params)
  elif out.suffix == ".safetensors":
    export.save_torch(out, export.build(source), params)
  elif out.suffix:
    raise ValueError(
      f"--out {out} must end in .npz or .safetensors, or be a folder for a "
      "new export."
    )
  else:
    classes = json.loads((source / "classes.json").read_text())["classes"]
    export.write(
      out,
      export.build(source),
      params=params,
      config=json.loads((source / "config.json").read_text()),
      classes=list(classes.values()),
      forgotten={number: edit.classes for number, edit in left.items()},
      weights=checksums.check(source).get("weights"),
    )


def main(argv: Sequence[str] | None = None) -> None:
  """Shows a run's edits, or writes its model with some of them undone."""
  parser = argparse.ArgumentParser(
    prog="python -m models.edits", description=__doc__.splitlines()[0]
  )
  parser.add_argument(
    "workdir", type=pathlib.Path, help="workdir of a run that forgot classes"
  )
  some = parser.add_mutually_exclusive_group()
  some.add_argument("--without", type=_numbers, help="requests to undo: 0,2")
  some.add_argument("--only", type=_numbers, help="requests to keep: 0,2")
  parser.add_argument(
    "--out", type=pathlib.Path, help="FILE.npz, FILE.safetensors or a folder"
  )
  options: Any = parser.parse_args(argv)
  chosen = options.without if options.only is None else options.only
  if (chosen is None) != (options.out is None):
    parser.error("--out needs --without or --only, and these need --out")
  try:
    edits = edits_lib.read_all(options.workdir)
    if chosen is None:
      width = None if sys.stdout.isatty() else 100
      for part in show(edits, _class_names(options.workdir)):
        # Names of classes may look like rich's markup.
        console.Console(width=width, markup=False).print(part)
      return
    known = edits_lib.known(chosen, edits)
    kept = [n for n in edits if (n in known) == (options.without is None)]
    params = edits_lib.undo(options.workdir, edits.keys() - kept)
    _write(options.out, params, options.workdir, {n: edits[n] for n in kept})
  except (ValueError, OSError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
  names = ", ".join(map(str, kept))
  left = f"requests {names} of {len(edits)}" if kept else "all requests undone"
  print(f"Wrote {options.out}: the model with {left}.")


if __name__ == "__main__":
  main()
