"""Runs several methods with several seeds and writes tables of their results.

  python -m benchmarks.compare --config configs/digits_baselines.py \
      --methods ewc,mas --also configs/digits_gs_lora.py:requests=4 \
      --seeds 42,43,44 --root runs/compare -- --my_config.audit.stages=last

Each run is a process of main.py with the workdir ROOT/NAME/SEED and its output
in ROOT/NAME/SEED.log. The seed draws the sample of images, their order, wrong
labels and new weights; pretrained weights are the same for all seeds. If a run
fails, the others go on, and the table shows it as not finished. The same
command run again continues unfinished runs; --table only writes the tables,
ROOT/compare.md and ROOT/compare.csv.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Collection
from collections.abc import Sequence

from benchmarks import over_seeds
from libml.results.progress_line import duration

MAIN = pathlib.Path(__file__).resolve().parent.parent / "main.py"


@dataclasses.dataclass(frozen=True)
class Run:
  """One process of main.py.

  Attributes:
    name: Name of its row in the tables.
    config: Config file, with arguments after a colon.
    seed: Seed of the run and of its sample of images.
    workdir: Workdir of this run only.
  """

  name: str
  config: str
  seed: int
  workdir: pathlib.Path

  @property
  def log(self) -> pathlib.Path:
    """The file with the output of the process."""
    return self.workdir.with_suffix(".log")

  def command(self, flags: Sequence[str]) -> list[str]:
    """Returns the command line; `flags` of main.py come last."""
    seeds = (f"--my_config.{key}={self.seed}" for key in SEEDS)
    start = [sys.executable, str(MAIN), "--my_config", self.config]
    return [*start, "--workdir", str(self.workdir), *seeds, *flags]

  def record(self) -> over_seeds.Record | None:
    """Returns the content of results.json; None if the run is not finished."""
    path = self.workdir / "results.json"
    try:
      record = json.loads(path.read_text()) if path.exists() else {}
      return record if record.get("finished") else None
    except (ValueError, AttributeError):
      return None  # damaged: main.py makes it again

  def fault(self) -> str:
    """Returns the last line of the log."""
    text = self.log.read_text(errors="replace") if self.log.exists() else ""
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it has not run"


# Keys of a config that are set to the seed.
SEEDS = ("seed", "scenario.sample_seed")


def rows(
  runs: Sequence[Run], refused: Collection[Run] = ()
) -> list[over_seeds.Row]:
  """Returns a row for each name, in order, also for names without results.

  Args:
    runs: The runs of all rows.
    refused: Runs that failed now; older results in their workdirs, which may be
      of another config, are left out.
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
  """Returns the runs in order: all methods with one seed, then the next seed.

  Raises:
    ValueError: There is nothing to run, or a row or seed is given twice.
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
        f"The {what} {twice[0]!r} is given twice; give it once."
        if twice
        else "Nothing to run: give --methods or --also, and --seeds."
      )
  return [
    Run(name, config, seed, args.root / _folder(name) / str(seed))
    for seed in args.seeds
    for name, config in configs
  ]


def _folder(name: str) -> str:
  return re.sub(r"[^\w.,=-]", "_", name)


class Lines:
  """Says which of all runs starts or ends, and how long the others take.

  Attributes:
    runs: All runs, in order.
    jobs: Number of runs at a time.
    seconds: Wall time of each run that has ended.
  """

  def __init__(self, runs: Sequence[Run], jobs: int):
    self.runs = runs
    self.jobs = jobs
    self.seconds: list[float] = []

  def say(self, run: Run, what: str) -> None:
    """Prints a line about a run."""
    at = f"[{self.runs.index(run) + 1}/{len(self.runs)}]"
    line = f"{at} {run.name}, seed {run.seed}: {what}"
    print(line, file=sys.stderr, flush=True)

  def ended(self, run: Run, how: str, seconds: float) -> None:
    """Prints the time of a run, and an estimate for those that are left."""
    self.seconds.append(seconds)
    left = len(self.runs) - len(self.seconds)
    rest = left * statistics.mean(self.seconds) / self.jobs
    text = f"{how} ({duration(seconds)})"
    if left:
      text += f"; {left} left, about {duration(rest)}"
    self.say(run, text)


def execute(runs: Sequence[Run], flags: Sequence[str], jobs: int) -> list[Run]:
  """Starts all runs, `jobs` at a time; returns those that fail.

  Finished runs are started, too: main.py checks that the workdir belongs to the
  same config, and ends at once.
  """
  waiting, going, failed = collections.deque(runs), {}, []
  lines = Lines(runs, jobs)
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
        lines.say(run, f"started, log {run.log}")
      for run, (process, began) in list(going.items()):
        if process.poll() is None:
          continue
        del going[run]
        if process.returncode < 0:
          with run.log.open("a") as log:
            log.write(f"Killed: {signal.strsignal(-process.returncode)}\n")
        if process.returncode:
          failed.append(run)
        how = run.fault() if process.returncode else "done"
        lines.ended(run, how, time.monotonic() - began)
      time.sleep(0.1)
    return failed
  finally:
    for process, _ in going.values():
      process.terminate()  # main.py saves a checkpoint and can resume
    for process, _ in going.values():
      process.wait()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Reads the command line."""

  def words(text):
    return [word for word in text.split(",") if word]

  def numbers(text):
    return [int(word) for word in words(text)]

  def count(text):
    if int(text) < 1:
      raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return int(text)

  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--config",
    default="configs/digits_baselines.py",
    help="config file that takes the argument method=",
  )
  parser.add_argument(
    "--methods", type=words, default=[], help="methods to run: M,M,..."
  )
  parser.add_argument(
    "--also",
    action="append",
    default=[],
    help="a further config to run, with its own arguments",
  )
  parser.add_argument(
    "--seeds", type=numbers, default=[42, 43, 44], help="SEED,SEED,..."
  )
  parser.add_argument(
    "--root",
    type=pathlib.Path,
    default=pathlib.Path("runs/compare"),
    help="folder of the workdirs and tables",
  )
  parser.add_argument("--jobs", type=count, default=2, help="runs at a time")
  parser.add_argument(
    "--table", action="store_true", help="run nothing, only write the tables"
  )
  parser.add_argument("flags", nargs="*", help="after --: flags of main.py")
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs what the command line asks for, and prints and writes both tables.

  Raises:
    SystemExit: Some runs are not finished.
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


def stop_on_signals() -> None:
  """Lets SIGTERM, SIGINT and SIGHUP end the program, with all runs."""
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda *_: sys.exit("Stopped."))


if __name__ == "__main__":
  stop_on_signals()
  main()
