"""Methods and seeds side by side: what is run, and what the tables say."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import pytest

from benchmarks import compare
from benchmarks import over_seeds

ROOT = pathlib.Path(__file__).resolve().parent.parent


def record(*, h_mean=(0.5, 0.7), finished=True, **more):
  """Returns what matters of a results.json of two requests."""
  before = {"acc_retain": 0.9}
  requests = [
    {
      "acc_forget": 0.02 * i,
      "drop_retain": 0.03 - 0.01 * i,
      "h_mean": h,
      **({"acc_old": 0.25} if i else {}),
    }
    for i, h in enumerate(h_mean)
  ]
  return {
    "finished": finished,
    "figure": "accuracy",
    "summary": {"accuracy": [before, *requests]},
    "wall_seconds": 12.4,
    "parameters": {"total": 1000, "trainable": 13},
    "audits": [],
    **more,
  }


def audits(steps):
  last = {
    "linear_probe": {"head": {"left": 0.5}, "fresh": None},
    "relearning": {"after": {"steps": steps}},
    "membership": {"after": {"test": {"auc": 0.61}}},
  }
  return [{}, last]


def args(tmp_path, *more):
  return compare.parse(["--root", str(tmp_path), *more])


def write(run, found):
  run.workdir.mkdir(parents=True)
  (run.workdir / "results.json").write_text(json.dumps(found))


def test_means_and_deviations_are_over_seeds(tmp_path):
  runs = compare.plan(args(tmp_path, "--methods=ewc,mas", "--seeds=1,2"))
  for run in runs:
    h_mean = (0.5, 0.7) if run.seed == 1 else (0.7, 0.9)
    write(run, record(h_mean=h_mean, audits=audits(steps=None)))
  table = compare.rows(runs)
  assert over_seeds.markdown(table).splitlines()[::2] == [
    "| method | runs | forget (%) | retain lost (%) | old (%) | H-mean (%) | "
    "seconds | trained (%) | probe left (%) | relearned in | "
    "membership AUC (%) |",
    "| ewc | 2/2 | 2.0 ± 0.0 | 3.0 ± 0.0 | 25.0 ± 0.0 | 70.0 ± 14.1 | "
    "12 ± 0 | 1.30 ± 0.00 | 50.0 ± 0.0 | never | 61.0 ± 0.0 |",
  ]
  lines = list(csv.DictReader(over_seeds.comma_separated(table).splitlines()))
  assert [line["method"] for line in lines] == ["ewc", "mas"]
  assert float(lines[0]["H-mean (%)"]) == pytest.approx(70)
  assert float(lines[0]["H-mean (%) std"]) == pytest.approx(200**0.5)
  assert lines[0]["relearned in"] == "" and lines[0]["relearned in runs"] == "0"
  assert "missing (%)" not in lines[0]


def test_some_seeds_that_never_relearn_are_counted(tmp_path):
  runs = compare.plan(args(tmp_path, "--methods=ewc", "--seeds=1,2,3"))
  for run, steps in zip(runs, (None, 4, 6), strict=True):
    write(run, record(audits=audits(steps)))
  (row,) = compare.rows(runs)
  assert str(row.cell("relearned in")) == "5 ± 1 (2 of 3)"


def test_what_a_swap_ends_with_counts(tmp_path):
  run = compare.plan(args(tmp_path, "--also=configs/swap.py", "--seeds=1"))[0]
  rows = [
    {"acc_learn": a, "acc_forget": b, "acc_retain": 0.9, "swap_mean": c}
    for a, b, c in ((0.1, 0.8, None), (0.9, 0.7, 0.2), (0.8, 0.0, 0.85))
  ]
  write(run, record() | {"summary": {"accuracy": rows}})
  table = over_seeds.markdown(compare.rows([run]))
  head, _, line = table.splitlines()
  assert head == (
    "| method | runs | learned (%) | forgotten (%) | retained (%) | "
    "of three (%) | seconds | trained (%) |"
  )
  assert line == ("| swap | 1/1 | 80.0 | 0.0 | 90.0 | 85.0 | 12 | 1.30 |")


def test_one_seed_has_no_deviation(tmp_path):
  runs = compare.plan(args(tmp_path, "--methods=ewc", "--seeds=1"))
  write(runs[0], record())
  (row,) = compare.rows(runs)
  assert str(row.cell("H-mean (%)")) == "60.0"
  assert (
    over_seeds.comma_separated([row]).splitlines()[1].startswith("ewc,1,1,")
  )


def test_what_diverged_stays_a_row(tmp_path):
  fault = "FloatingPointError: Step 7, in stage 2: {'loss': nan}."
  runs = compare.plan(args(tmp_path, "--methods=ewc,lwf", "--seeds=1,2"))
  for run in runs:
    diverges = run.name == "lwf"
    write(run, record(finished=not diverges))
    run.log.write_text(
      f"12:00:00 Resuming.\n{fault if diverges else 'table'}\n"
    )
  text = over_seeds.markdown(compare.rows(runs))
  assert f"| lwf | 0/2 |{' – |' * 6}" in text
  assert [line.split(" (")[0] for line in compare.faults(runs)] == [
    f"lwf, seed 1: {fault}",
    f"lwf, seed 2: {fault}",
  ]


def test_a_command_names_config_seeds_and_workdir(tmp_path):
  runs = compare.plan(
    args(
      tmp_path,
      "--config=configs/x.py:shots=4",
      "--methods=ewc",
      "--also=configs/y.py:plus,requests=4",
      "--seeds=42,43",
    )
  )
  assert [(run.name, run.seed) for run in runs] == [
    ("ewc", 42),
    ("y:plus,requests=4", 42),
    ("ewc", 43),
    ("y:plus,requests=4", 43),
  ]
  assert runs[0].config == "configs/x.py:shots=4,method=ewc"
  assert runs[1].workdir == tmp_path / "y_plus,requests=4" / "42"
  assert runs[3].command(["--my_config.epochs=1"])[2:] == [
    "--my_config",
    "configs/y.py:plus,requests=4",
    "--workdir",
    str(tmp_path / "y_plus,requests=4" / "43"),
    "--my_config.seed=43",
    "--my_config.scenario.sample_seed=43",
    "--my_config.epochs=1",
  ]


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (["--methods=ewc,ewc"], "The row 'ewc' is given twice"),
    (["--methods=ewc", "--seeds=1,1"], "The seed 1 is given twice"),
    (["--seeds=1"], "Nothing to run: give --methods or --also"),
    (["--methods=ewc", "--seeds="], "Nothing to run: .*--seeds"),
  ],
)
def test_nothing_twice_and_nothing_empty(tmp_path, given, message):
  with pytest.raises(SystemExit, match=message):
    compare.main(["--root", str(tmp_path), *given])


# Stands for main.py: "bad" fails, "other" has a workdir of another config.
PROGRAM = """
import json, pathlib, sys
config, workdir = sys.argv[2], pathlib.Path(sys.argv[4])
workdir.mkdir(parents=True, exist_ok=True)
path = workdir / "results.json"
if "method=bad" in config:
  sys.exit("FloatingPointError: Step 1: nan")
if "method=other" in config and path.exists():
  sys.exit("ValueError: holds a run of another config")
if path.exists():
  sys.exit(print("finished; nothing is trained"))
print(*sys.argv[5:])
path.write_text(RECORD)
"""


def test_all_are_run_and_faults_are_said_at_the_end(
  tmp_path, monkeypatch, capsys
):
  program = tmp_path / "program.py"
  program.write_text(PROGRAM.replace("RECORD", repr(json.dumps(record()))))
  monkeypatch.setattr(compare, "MAIN", program)
  given = ["--root", str(tmp_path / "root"), "--methods=bad,other,ewc"]
  given += ["--seeds=1,2", "--jobs=3"]
  with pytest.raises(SystemExit, match="2 of 6 runs are not finished"):
    compare.main([*given, "--", "--my_config.epochs=1"])
  out, said = capsys.readouterr()
  assert "| bad | 0/2 |" in out and "| ewc | 2/2 |" in out
  assert "Not finished: bad, seed 2: FloatingPointError: Step 1: nan" in out
  assert "[6/6]" in said
  assert "--my_config.seed=2" in (tmp_path / "root/ewc/2.log").read_text()
  assert "--my_config.epochs=1" in (tmp_path / "root/ewc/2.log").read_text()
  assert (tmp_path / "root/compare.md").read_text() in out
  assert (tmp_path / "root/compare.csv").read_text() in out
  # Again: what is finished stays, what is another config's does not count.
  with pytest.raises(SystemExit, match="4 of 6 runs are not finished"):
    compare.main(given)
  assert "nothing is trained" in (tmp_path / "root/ewc/1.log").read_text()
  assert "| other | 0/2 |" in capsys.readouterr().out
  with pytest.raises(SystemExit, match="2 of 6"):  # only reads
    compare.main([*given, "--table"])


def test_a_real_run_is_a_row(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  cache = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", cache)
  given = [
    "--root",
    str(tmp_path),
    "--config=configs/digits_baselines.py:smoke",
  ]
  compare.main([*given, "--methods=hide_head", "--seeds=7"])
  found = json.loads((tmp_path / "hide_head/7/results.json").read_text())
  assert found["seeds"] == {"run": 7, "sample": 7}
  assert "| hide_head | 1/1 | 0.0 |" in capsys.readouterr().out


def test_tables_need_neither_tensorflow_nor_jax():
  check = "import sys, benchmarks.compare; print({'jax', 'tensorflow'} & {*%s})"
  done = subprocess.run(
    [sys.executable, "-c", check % "sys.modules"],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  )
  assert done.stdout.strip() == "set()"


def test_lines_number_the_runs_and_estimate_what_is_left(tmp_path, capsys):
  runs = compare.plan(args(tmp_path, "--methods=ewc,mas,l2", "--seeds=1"))
  lines = compare.Lines(runs, jobs=2)
  lines.say(runs[1], "started")
  lines.ended(runs[1], "done", 80.0)
  lines.ended(runs[0], "it failed", 40.0)
  lines.ended(runs[2], "done", 60.0)
  assert capsys.readouterr().err.splitlines() == [
    "[2/3] mas, seed 1: started",
    "[2/3] mas, seed 1: done (1 min 20 s); 2 left, about 1 min 20 s",
    "[1/3] ewc, seed 1: it failed (40 s); 1 left, about 30 s",
    "[3/3] l2, seed 1: done (1 min 0 s)",
  ]


@pytest.mark.parametrize("jobs", ["0", "-1"])
def test_no_jobs_are_refused(tmp_path, capsys, jobs):
  with pytest.raises(SystemExit):
    args(tmp_path, f"--jobs={jobs}")
  assert f"{jobs} must be at least 1" in capsys.readouterr().err


LONG = """
import os, pathlib, sys, time
print(os.getpid(), flush=True)
time.sleep(60)
"""
STARTED = """
import pathlib, sys
from benchmarks import compare
compare.MAIN = pathlib.Path(sys.argv[1])
compare.stop_on_signals()
compare.main(sys.argv[2:])
"""


def test_its_end_is_the_end_of_its_runs(tmp_path):
  program = tmp_path / "program.py"
  program.write_text(LONG)
  given = [str(program), f"--root={tmp_path}", "--methods=ewc", "--seeds=1"]
  log = tmp_path / "ewc" / "1.log"
  with subprocess.Popen(
    [sys.executable, "-c", STARTED, *given], cwd=ROOT, stderr=subprocess.PIPE
  ) as process:
    while not (log.exists() and log.read_text().endswith("\n")):
      assert process.poll() is None
      time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 1
    assert b"Stopped." in process.stderr.read()
  with pytest.raises(ProcessLookupError):
    os.kill(int(log.read_text()), 0)
