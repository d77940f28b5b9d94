"""Runs methods and seeds of one config, and sets their results side by side.

  python -m benchmarks.compare --config configs/digits_baselines.py \
      --methods ewc,mas --also configs/digits_gs_lora.py:requests=4 \
      --seeds 42,43,44 --root runs/compare -- --my_config.audit.stages=last

Each run is a process of main.py in ROOT/NAME/SEED, and what it says is in
ROOT/NAME/SEED.log. The seed draws which images are at hand, their order, wrong
labels and fresh weights; given weights are the same for all. A run that fails
stops no other and stays in the table. The same command goes on with what is not
finished; --table runs nothing. The tables are in ROOT/compare.md and .csv.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from collections.abc import Sequence

from benchmarks import over_seeds

MAIN = pathlib.Path(__file__).resolve().parent.parent / "main.py"


@dataclasses.dataclass(frozen=True)
class Run:
  """One process of main.py.

  Attributes:
    name: Of its row.
    config: With arguments.
    seed: Of the run and of its sample.
    workdir: Its own.
  """

  name: str
  config: str
  seed: int
  workdir: pathlib.Path

  @property
  def log(self) -> pathlib.Path:
    """The file of what it says."""
    return self.workdir.with_suffix(".log")

  def command(self, flags: Sequence[str]) -> list[str]:
    """Returns the command line, further flags last."""
    seeds = (f"--my_config.{key}={self.seed}" for key in SEEDS)
    start = [sys.executable, str(MAIN), "--my_config", self.config]
    return [*start, "--workdir", str(self.workdir), *seeds, *flags]

  def record(self) -> over_seeds.Record | None:
    """Returns its results, None where it is not finished."""
    path = self.workdir / "results.json"
    record = json.loads(path.read_text()) if path.exists() else None
    return record if record and record["finished"] else None

  def fault(self) -> str:
    """Returns the last line that it said."""
    text = self.log.read_text(errors="replace") if self.log.exists() else ""
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it has not run"


# Keys of a config that take the seed.
SEEDS = ("seed", "scenario.sample_seed")


def rows(
  runs: Sequence[Run], refused: Collection[Run] = ()
) -> list[over_seeds.Row]:
  """Returns a row for each name, in order; a name without results has one.

  Args:
    runs: Of all rows.
    refused: Those of them whose workdir main.py did not take for finished.
  """
  groups = collections.defaultdict(list)
  for run in runs:
    groups[run.name].append(None if run in refused else run.record())
  return [
    over_seeds.Row(name, [r for r in records if r], len(records))
    for name, records in groups.items()
  ]


def faults(runs: Sequence[Run], refused: Collection[Run] = ()) -> list[str]:
  """Returns one line for each run that is not finished."""
  return [
    f"{run.name}, seed {run.seed}: {run.fault()} ({run.log})"
    for run in runs
    if run in refused or run.record() is None
  ]


def plan(args: argparse.Namespace) -> list[Run]:
  """Returns the runs, all methods of one seed before the next seed.

  Raises:
    ValueError: Nothing to run, or a row or seed twice.
  """
  joint = "," if ":" in args.config else ":"
  configs = [(m, f"{args.config}{joint}method={m}") for m in args.methods]
  for config in args.also:
    path, _, arg = config.partition(":")
    stem = pathlib.Path(path).stem
    configs.append((f"{stem}:{arg}" if arg else stem, config))
  for what, given in (("row", [n for n, _ in configs]), ("seed", args.seeds)):
    twice = [x for x, n in collections.Counter(given).items() if n > 1]
    if twice or not given:
      raise ValueError(
        f"The {what} {twice[0]!r} stands twice; name it once."
        if twice
        else f"There is no {what}; give --methods or --also, and --seeds."
      )
  return [
    Run(name, config, seed, args.root / _folder(name) / str(seed))
    for seed in args.seeds
    for name, config in configs
  ]


def _folder(name: str) -> str:
  return re.sub(r"[^\w.,=-]", "_", name)


def execute(runs: Sequence[Run], flags: Sequence[str], jobs: int) -> list[Run]:
  """Starts all runs, some at a time; returns those that fail.

  A finished one is started, too: main.py sees that it is, and that its workdir
  is of the same config.
  """
  waiting, going, failed, ended = collections.deque(runs), {}, [], 0
  try:
    while waiting or going:
      while waiting and len(going) < jobs:
        run = waiting.popleft()
        run.log.parent.mkdir(parents=True, exist_ok=True)
        with run.log.open("w") as log:
          process = subprocess.Popen(
            run.command(flags), stdout=log, stderr=subprocess.STDOUT
          )
        going[run] = process, time.monotonic()
      for run, (process, began) in list(going.items()):
        if process.poll() is None:
          continue
        del going[run]
        if process.returncode < 0:
          with run.log.open("a") as log:
            log.write(f"Killed: {signal.strsignal(-process.returncode)}\n")
        if process.returncode:
          failed.append(run)
        ended += 1
        seconds = time.monotonic() - began
        how = run.fault() if process.returncode else "done"
        said = f"{run.name}, seed {run.seed}: {how} ({seconds:.0f} s)"
        print(f"[{ended}/{len(runs)}] {said}", file=sys.stderr, flush=True)
      time.sleep(0.1)
    return failed
  finally:
    for process, _ in going.values():
      process.terminate()  # it saves, and goes on another time
    for process, _ in going.values():
      process.wait()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Reads the command line."""

  def words(text):
    return [word for word in text.split(",") if word]

  def numbers(text):
    return [int(word) for word in words(text)]

  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--config", default="configs/digits_baselines.py", help="with :method="
  )
  parser.add_argument("--methods", type=words, default=[], help="M,M,...")
  parser.add_argument(
    "--also", action="append", default=[], help="a config, as it stands"
  )
  parser.add_argument("--seeds", type=numbers, default=[42, 43, 44])
  parser.add_argument(
    "--root", type=pathlib.Path, default=pathlib.Path("runs/compare")
  )
  parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
  parser.add_argument("--table", action="store_true", help="run nothing")
  parser.add_argument("flags", nargs="*", help="after --: flags of main.py")
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs, and prints both tables.

  Raises:
    SystemExit: With the runs that are not finished.
  """
  args = parse(argv)
  try:
    runs = plan(args)
  except ValueError as error:
    sys.exit(f"ValueError: {error}")
  failed = [] if args.table else execute(runs, args.flags, args.jobs)
  table, left = rows(runs, failed), faults(runs, failed)
  text = over_seeds.markdown(table) + "".join(
    f"\nNot finished: {line}\n" for line in left
  )
  args.root.mkdir(parents=True, exist_ok=True)
  (args.root / "compare.md").write_text(text)
  (args.root / "compare.csv").write_text(over_seeds.comma_separated(table))
  print(text)
  print(over_seeds.comma_separated(table))
  if left:
    sys.exit(f"{len(left)} of {len(runs)} runs are not finished.")


if __name__ == "__main__":
  signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))
  main()
