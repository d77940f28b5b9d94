"""Damages files and kills runs at random: does each run end right?

  python tests/soak.py flips [--count 500] [--seed 0]
  python tests/soak.py kills [--count 60] [--seed 0]

CI does not run this. `flips` takes minutes, `kills` a quarter of an hour on two
cores. Both print a table, and name every trial that went wrong; the exit status
is then 1.

flips: each trial copies a workdir, flips one bit of one file, and lets the
program read it. A trial with a checkpoint ends when the run has resumed:
weights, moments, counters and metrics are compared bit for bit with those of
the undamaged checkpoint, or of the one before. Every tenth one also runs to its
end, and results.json is compared.

kills: each trial starts main.py in a process, kills it at a random time with
SIGKILL, starts it again until it ends, and compares results.json (without
times), edits/ and export/ with those of a run that nobody killed. Every fourth
kill waits until a checkpoint is being written. Every fourth one comes when a
file is half written: results.json, config.json, an edit, a checksum, an export.
Every third run is killed twice. At last two processes run in one workdir.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import io
import logging
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterator
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import children  # noqa: E402  (the path comes first)
import conftest  # noqa: E402, F401  (sets JAX's devices and its cache)
import gs_toy  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import toy  # noqa: E402
from experiment_test import numbers  # noqa: E402
from experiment_test import stop_at  # noqa: E402
from PIL import Image  # noqa: E402
from rich import box  # noqa: E402
from rich import console  # noqa: E402
from rich import table  # noqa: E402

import main as main_py  # noqa: E402
from libml import trees  # noqa: E402
from libml.train import checkpoint  # noqa: E402
from libml.train import resume  # noqa: E402
from libml.train import weights  # noqa: E402
from libml.train.display import Display  # noqa: E402
from libml.train.walk import Interrupted  # noqa: E402
from models import export  # noqa: E402
from models.edits import __main__ as edits_command  # noqa: E402


def show(title: str, columns: tuple[str, ...], rows: dict) -> None:
  """Prints counts: {row: {column: number}}, and their sums."""
  shown = table.Table(box=box.SIMPLE_HEAD)
  shown.add_column(title)
  for column in columns:
    shown.add_column(column, justify="right")
  total = sum(rows.values(), collections.Counter())
  for name, found in {**rows, "together": total}.items():
    shown.add_row(name, *(str(found[column]) for column in columns))
  console.Console(width=100).print(shown)


# Flips

HARMLESS, BEFORE, ERROR, WRONG = (
  "harmless",
  "noticed, checkpoint before",
  "noticed, error",
  "wrong",
)


class Wrong(Exception):
  """A damaged file changed a result, or ended in a traceback."""


def judge(read: Callable[[], dict], *wanted: dict) -> str:
  """Returns HARMLESS, BEFORE or ERROR.

  Args:
    read: Returns what was read or computed.
    *wanted: What it may return: that of the undamaged file, and of the
      checkpoint before.

  Raises:
    Wrong: It returns something else, or raises what is not one clear line.
  """
  try:
    found = read()
  except (ValueError, OSError, SystemExit) as error:
    line = str(error.code if isinstance(error, SystemExit) else error)
    if "\n" in line or len(line) < 20:
      raise Wrong(f"{type(error).__name__}: {line!r}") from error
    return ERROR
  except Exception as error:
    raise Wrong(f"{type(error).__name__}: {error}") from error
  if found not in wanted:
    keys = [k for k in found if found[k] != wanted[0].get(k)]
    raise Wrong(f"another result: {', '.join(keys)}")
  return (HARMLESS, BEFORE)[wanted.index(found)]


def bits(arrays: dict) -> dict:
  """Returns name -> bytes of arrays, typed keys of random numbers included."""

  def plain(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    leaf = np.asarray(leaf)
    return leaf.dtype, leaf.shape, leaf.tobytes()

  return {name: plain(leaf) for name, leaf in arrays.items()}


class Resumed(Exception):
  """Ends a run before it restores a checkpoint."""


class Learning:
  """A run stopped in its last stage but one, with two checkpoints."""

  name = "checkpoints/"

  def __init__(self, folder: pathlib.Path):
    """Runs it to its stop, and an uninterrupted one."""
    self.workdir = folder / "learning"
    with contextlib.suppress(Interrupted):
      main_py.execute(self.config(), self.workdir, stop_at(8 + 3 + 5))
    main_py.execute(self.config(), folder / "learning-whole")
    self._end = numbers(folder / "learning-whole")
    self._given = self._arguments()
    before = folder / "learning-before"
    shutil.copytree(self.workdir, before)
    shutil.rmtree(max((before / "checkpoints").glob("[0-9]*"), key=_number))
    self._wanted = [self.restored(self.workdir), self.restored(before)]

  def config(self):
    """Returns its config."""
    return toy.tiny(checkpoint__every_steps=3)

  def files(self, workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files to damage."""
    files = (workdir / "checkpoints").rglob("*")
    return sorted(path for path in files if path.is_file())

  def try_it(self, workdir: pathlib.Path, number: int) -> str:
    """Returns how the trial of this number ended; raises Wrong."""
    if number % 10 == 0:
      goes_on = workdir.with_name("goes-on")  # a restore may change files
      shutil.copytree(workdir, goes_on)
      judge(lambda: self.ended(goes_on), self._end)
      shutil.rmtree(goes_on)
    return judge(lambda: self.restored(workdir), *self._wanted)

  def ended(self, workdir: pathlib.Path) -> dict:
    """Returns the results of a run that goes on."""
    main_py.execute(self.config(), workdir)
    return numbers(workdir)

  def restored(self, workdir: pathlib.Path) -> dict:
    """Returns the bits and the progress with which a run would go on."""
    state, saved, facts, stages = self._given
    with checkpoint.Saver(workdir / "checkpoints", keep=2) as saver:
      leaves, progress = resume.restore(
        state, saver, saved, facts, stages=stages
      )
    return {**bits(leaves), **dataclasses.asdict(progress)}

  def _arguments(self):
    """Returns what a run gives to resume.restore, but for its saver."""
    given = []

    def keep(state, saver, saved, facts, *, stages):
      given.append((state, saved, facts, stages))
      raise Resumed

    with mock.patch.object(resume, "restore", keep):
      with contextlib.suppress(Resumed):
        main_py.execute(self.config(), self.workdir)
    return given[0]


class Record(Learning):
  """The same, of which the record of the progress is damaged."""

  name = "progress/metadata"

  def files(self, workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files to damage."""
    return sorted((workdir / "checkpoints").glob("*/progress/metadata"))


def _number(path: pathlib.Path) -> int:
  return int(path.name)


class Forgetting:
  """A finished run that forgot, with edits/ and export/."""

  name = "edits/ and export/"

  def __init__(self, folder: pathlib.Path):
    """Runs it."""
    self.workdir = folder / "forgetting"
    main_py.execute(gs_toy.tiny(export=True), self.workdir)
    self._out = folder / "out.npz"
    self._wanted = {read: read(self.workdir) for read in self.readers()}

  def files(self, workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files to damage."""
    return sorted([*workdir.glob("edits/*"), *workdir.glob("export/*")])

  def try_it(self, workdir: pathlib.Path, number: int) -> str:
    """Returns how the trial of this number ended; raises Wrong."""
    del number
    ends = set()
    for read, wanted in self._wanted.items():
      try:
        ends.add(judge(lambda read=read: read(workdir), wanted))
      except Wrong as wrong:
        raise Wrong(f"{read.__name__}: {wrong}") from wrong
    return ERROR if ERROR in ends else HARMLESS

  def readers(self) -> list[Callable[[pathlib.Path], dict]]:
    """Returns all that reads edits and exports."""
    return [
      self.shown,
      self.undone,
      self.read,
      self.first_from_npz,
      self.first_from_safetensors,
    ]

  def shown(self, workdir: pathlib.Path) -> dict:
    """Returns what `models.edits WORKDIR` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      edits_command.main([str(workdir)])
    return {"printed": printed.getvalue()}

  def undone(self, workdir: pathlib.Path) -> dict:
    """Returns the weights that `models.edits WORKDIR --without 1` writes."""
    with contextlib.redirect_stdout(io.StringIO()):
      edits_command.main([str(workdir), "--without=1", f"--out={self._out}"])
    with np.load(self._out) as arrays:
      return bits(arrays)

  def read(self, workdir: pathlib.Path) -> dict:
    """Returns an export's parameters."""
    _, params = export.read(workdir / "export")
    return bits(trees.flatten(params))

  def first_from_npz(self, workdir: pathlib.Path) -> dict:
    """Returns the first weights of a run that starts from the export."""
    return self._first(workdir / "export" / "params.npz")

  def first_from_safetensors(self, workdir: pathlib.Path) -> dict:
    """Returns the same of the other file."""
    return self._first(workdir / "export" / "model.safetensors")

  def _first(self, path):
    config = gs_toy.tiny(init_checkpoint=str(path), random_init=False)
    model = main_py.build_method(config, 6, 3).model
    params, _ = weights.first(config, model)
    return bits(trees.flatten(params))


def flip(path: pathlib.Path, rng: random.Random) -> str:
  """Flips one bit of a file; returns which."""
  data = bytearray(path.read_bytes())
  place, bit = rng.randrange(len(data)), rng.randrange(8)
  data[place] ^= 1 << bit
  path.write_bytes(data)
  return f"byte {place} of {len(data)}, bit {bit}"


def flips(count: int, seed: int, folder: pathlib.Path) -> bool:
  """Runs trials of all kinds; returns whether all went right."""
  logging.disable()
  sys.unraisablehook = lambda _: None  # as main.py: TensorStore's threads
  learning, record = Learning(folder / "learned"), Record(folder / "record")
  shares = {learning: 0.4, record: 0.4, Forgetting(folder): 0.2}
  rows = {}
  for kind, share in shares.items():
    found = rows[kind.name] = collections.Counter()
    for number in range(round(share * count)):
      rng = random.Random(f"{seed} {kind.name} {number}")
      workdir = folder / "trial"
      shutil.copytree(kind.workdir, workdir)
      path = rng.choice(kind.files(workdir))
      where = f"{path.relative_to(workdir)}, {flip(path, rng)}"
      try:
        end = kind.try_it(workdir, number)
      except Wrong as wrong:
        end = WRONG
        print(f"{WRONG}: trial {number}, {where}: {wrong}", flush=True)
      found[end] += 1
      shutil.rmtree(workdir)
  show("one bit flipped in", (HARMLESS, BEFORE, ERROR, WRONG), rows)
  return not any(found[WRONG] for found in rows.values())


# Kills

_AUDITED = (
  "configs/digits_baselines.py:smoke,method=hide_head",
  "--my_config.export=True",
  "--my_config.audit.max_steps=8",
)
_OFTEN = ("--my_config.epochs=2", "--my_config.checkpoint.every_steps=3")
_EXPORT = (*_OFTEN, "--my_config.export=True")
# Name -> the config and further arguments of main.py.
RUNS = {
  "l2p": ("configs/cifar100_l2p.py:smoke", *_OFTEN),
  "rehearsal": (
    "configs/cifar100_l2p.py:smoke,rehearsal=review_trick",
    *_OFTEN,
  ),
  "lora_sub": ("configs/cifar100_lora_sub.py:smoke", *_OFTEN),
  "ranpac": ("configs/digits_reference.py:smoke,method=ranpac",),
  "gs_lora": ("configs/digits_gs_lora.py:smoke", *_EXPORT),
  "gs_lora_plus": ("configs/digits_gs_lora.py:smoke,plus", *_EXPORT),
  "scrub_s": ("configs/digits_baselines.py:smoke,method=scrub_s", *_EXPORT),
  "swapping": ("configs/digits_swap.py:smoke,order=lf", *_EXPORT),
  "faces": ("configs/casia100_gs_lora.py:smoke", *_EXPORT),
  "audits": (*_AUDITED, "--my_config.audit.stages=all"),
  "later audit": _AUDITED,
}
# What a process writes: first part of a path in the workdir.
WRITES = {
  "edits": "writes an edit",
  "results.json": "writes results",
  ".export.part": "writes the export",
  "export": "writes the export",
  "config.json": "writes the config",
  "checkpoints": "writes a checkpoint",
}
# What a stage does, by the observer's event.
EVENTS = {
  "begin": "begins a stage",
  "train": "trains",
  "trained": "ends training",
  "measure": "measures",
  "audit": "ends a stage",
  "end": "ends a stage",
}


class Told(Display):
  """Writes into a file what the run does."""

  path: pathlib.Path
  _told = ""

  def _tell(self, what):
    self._told = what
    self.path.write_text(what)

  def on_start(self, run, state):
    """Tells that the run is built."""
    self._tell("restores")
    super().on_start(run, state)

  def on_stage(self, stage, event, state):
    """Tells the part of a stage."""
    self._tell(EVENTS[event])
    super().on_stage(stage, event, state)

  def on_work(self, what, done=0, total=None):
    """Tells what the progress line shows."""
    self._tell("audits" if what.startswith("audit") else "prepares or passes")
    super().on_work(what, done, total)

  def on_compile(self, name):
    """Tells that a function is compiled."""
    self._tell("audits" if self._told == "audits" else "compiles")
    super().on_compile(name)

  def on_step(self, stage, step, metrics):
    """Tells that the run trains."""
    self._tell("trains")
    super().on_step(stage, step, metrics)


def live(told: pathlib.Path, at: int, *arguments: str) -> None:
  """Is main.py, which tells what it does.

  Args:
    told: File for that, WORKDIR.told.
    at: Number of the file that it writes, from 0, at which it kills itself; the
      file is half written then. -1: never.
    *arguments: Of main.py.
  """
  workdir, written = told.with_suffix(""), told.with_suffix(".written")
  replace = os.replace

  def half(source, target):
    if workdir in pathlib.Path(target).parents:
      with written.open("a") as names:
        print(pathlib.Path(target).relative_to(workdir).parts[0], file=names)
      if len(written.read_text().splitlines()) - 1 == at:
        if os.path.isfile(source):
          os.truncate(source, os.path.getsize(source) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

  Told.path = told
  main_py.Display = Told
  with mock.patch.object(os, "replace", half):
    children.command_line(*arguments)


def faces(folder: pathlib.Path) -> tuple[str, ...]:
  """Makes pictures of faces and pairs; returns the arguments that name them."""
  rng = np.random.default_rng(0)
  names = [f"{person}_{number}.png" for person in range(4) for number in "012"]
  folder.mkdir()
  for name in names:
    pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(folder / name)
  pairs = [
    f"{a} {b} {int(a[0] == b[0])}" for a in names for b in names if a < b
  ]
  rng.shuffle(pairs)
  (folder / "pairs.txt").write_text("\n".join(pairs))
  return (
    f"--my_config.verification.pairs={folder / 'pairs.txt'}",
    f"--my_config.verification.root={folder}",
  )


class Case:
  """A run that is killed, and what it leaves where nobody kills it."""

  def __init__(self, name: str, folder: pathlib.Path):
    """Runs it twice: the second time tells its time and that it is repeatable.

    Args:
      name: A key of RUNS.
      folder: For its workdirs.
    """
    self.name = name
    self._folder = folder / name.replace(" ", "_")
    self._folder.mkdir()
    self._arguments = RUNS[name]
    if name == "faces":
      self._arguments += faces(self._folder / "faces")
    self._begun: set[str] = set()  # saves of killed processes
    self._first = None  # workdir of a finished run that is audited later
    if name == "later audit":
      self._first = self.finish(self._folder / "first")
      self._arguments += ("--audit",)
    self.left = self.files(self.finish(self.workdir("whole")))
    written = self._folder / "whole.written"
    self._writes = written.read_text().splitlines()
    began = time.monotonic()
    again = self.finish(self.workdir("again"))
    self.seconds = time.monotonic() - began
    if self.different(again):
      raise RuntimeError(f"{name} ends in another way when it is repeated")

  def workdir(self, name: str) -> pathlib.Path:
    """Returns a workdir, as it is before the run's first start."""
    workdir = self._folder / name
    shutil.rmtree(workdir, ignore_errors=True)
    if self._first:
      shutil.copytree(self._first, workdir)
    return workdir

  def start(self, workdir: pathlib.Path, *, at: int = -1):
    """Starts main.py, see `live`; what it prints goes beside the workdir."""
    self._begun = _saves(workdir)
    told = workdir.with_suffix(".told")
    told.write_text("starts")
    told.with_suffix(".written").unlink(missing_ok=True)
    return children.start(
      live,
      told,
      at,
      f"--workdir={workdir}",
      *("--my_config", *self._arguments),
      log=workdir.with_suffix(".log"),
    )

  def finish(self, workdir: pathlib.Path) -> pathlib.Path:
    """Starts main.py and waits for its end."""
    process = self.start(workdir)
    [code], [printed] = children.finish(process)
    if code:
      raise RuntimeError(f"{self.name} ended with {code}:\n{printed[-2000:]}")
    return workdir

  def files(self, workdir: pathlib.Path) -> dict:
    """Returns what a run leaves."""
    paths = [*workdir.glob("edits/*"), *workdir.glob("export/*")]
    files = {str(p.relative_to(workdir)): p.read_bytes() for p in paths}
    return {**files, **numbers(workdir)}

  def different(self, workdir: pathlib.Path) -> list[str]:
    """Returns files and keys of results.json that are not those wanted."""
    found = self.files(workdir)
    names = {*found, *self.left}
    return sorted(n for n in names if found.get(n) != self.left.get(n))

  def kill(self, workdir: pathlib.Path, rng: random.Random) -> str | None:
    """Kills main.py at a random time; returns what it did then, None: ended."""
    return self._killed(workdir, self._later(workdir, rng))

  def kill_saving(
    self, workdir: pathlib.Path, rng: random.Random
  ) -> str | None:
    """Kills it, too, but where it next writes a checkpoint."""
    process = self._later(workdir, rng)
    while process.is_alive() and not _saves(workdir) - self._begun:
      pass
    return self._killed(workdir, process)

  def kill_writing(
    self,
    workdir: pathlib.Path,
    rng: random.Random,
    written: collections.Counter,
  ) -> str | None:
    """Kills it where it has written half of a file.

    Args:
      workdir: Of the run.
      rng: Chooses the file.
      written: How often each kind of file was chosen; it is counted up.
    """
    # Each kind in turn, as the config and results are written by all runs.
    order = [*WRITES]
    kinds = sorted(set(self._writes), key=order.index)
    kind = min(kinds, key=lambda kind: written[WRITES[kind]])
    places = [i for i, name in enumerate(self._writes) if name == kind]
    written[WRITES[kind]] += 1
    process = self.start(workdir, at=rng.choice(places))
    process.join()
    if process.exitcode != -signal.SIGKILL:
      return None
    return WRITES[kind]

  def _later(self, workdir, rng):
    """Starts main.py and waits for a random time."""
    process = self.start(workdir)
    process.join(rng.uniform(0, self.seconds))
    return process

  def _killed(self, workdir, process):
    """Kills a process; returns what it did."""
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
      return None
    if _saves(workdir) - self._begun:
      return WRITES["checkpoints"]
    return workdir.with_suffix(".told").read_text() or "trains"


def _saves(workdir: pathlib.Path) -> set[str]:
  """Returns the checkpoints that are not finished."""
  found = workdir.glob("checkpoints/*orbax-checkpoint-tmp*")
  return {path.name for path in found}


def trials(
  cases: list[Case], count: int, seed: int
) -> Iterator[tuple[Case, list[str], list[str]]]:
  """Yields (case, what each killed process was doing, what differs)."""
  number = kills = 0
  written = collections.Counter()
  while kills < count:
    case = cases[number % len(cases)]
    rng = random.Random(f"{seed} {number}")
    workdir = case.workdir("killed")
    half = functools.partial(case.kill_writing, written=written)
    ways = (case.kill, case.kill_saving, case.kill, half)
    doing = [ways[number % 4](workdir, rng)]
    if number % 3 == 0:
      doing.append(case.kill(workdir, rng))
    doing = [what for what in doing if what]
    number += 1
    kills += len(doing)
    if doing:
      try:
        wrong = case.different(case.finish(workdir))
      except RuntimeError as error:
        wrong = [str(error)]
      yield case, doing, wrong


def two_at_once(case: Case) -> bool:
  """Starts two processes in one workdir; returns whether one is refused."""
  workdir = case.workdir("shared")
  first = case.start(workdir)
  told = workdir.with_suffix(".told")
  while first.is_alive() and told.read_text() not in ("compiles", "trains"):
    time.sleep(0.01)
  log = workdir.with_suffix(".log").rename(workdir.with_suffix(".first.log"))
  second = case.start(workdir)
  [code], [printed] = children.finish(second)
  print(printed.strip())
  first.log = log
  [other], _ = children.finish(first)
  refused = f"is in use by process {first.pid} on" in printed
  right = code == 1 and refused and not other and not case.different(workdir)
  print(f"two processes in one workdir: {'one is refused' if right else WRONG}")
  return right


def kills(count: int, seed: int, folder: pathlib.Path) -> bool:
  """Kills runs of all cases; returns whether all went right."""
  cases = [Case(name, folder) for name in RUNS]
  rows = {case.name: collections.Counter() for case in cases}
  phases = collections.defaultdict(collections.Counter)
  for case, doing, different in trials(cases, count, seed):
    end = WRONG if different else "same bits"
    rows[case.name].update({"kills": len(doing), "runs": 1, end: 1})
    for what in doing:
      phases[what].update({"kills": 1})
    if different:
      print(
        f"{WRONG}: {case.name}, killed where it {doing}: {different}",
        flush=True,
      )
  show("run", ("runs", "kills", "same bits", WRONG), rows)
  show("killed where it", ("kills",), phases)
  return two_at_once(cases[0]) and not any(row[WRONG] for row in rows.values())


def main() -> None:
  """Runs what the command line says."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  kinds = parser.add_subparsers(dest="kind", required=True)
  for soak, count in ((flips, 500), (kills, 60)):
    kind = kinds.add_parser(soak.__name__)
    kind.add_argument("--count", type=int, default=count)
    kind.add_argument("--seed", type=int, default=0)
    kind.set_defaults(soak=soak)
  options = parser.parse_args()
  began = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    right = options.soak(options.count, options.seed, pathlib.Path(folder))
  print(f"seed {options.seed}, {time.monotonic() - began:.0f} s")
  sys.exit(not right)


if __name__ == "__main__":
  main()
