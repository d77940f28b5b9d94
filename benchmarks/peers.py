"""Times this project's steps and the same steps in PyTorch with timm's ViT.

  python benchmarks/peers.py --torch_python VENV/bin/python

VENV has the packages of benchmarks/requirements.txt; all but PyTorch runs in
this Python. For each method and type there are three processes (this project,
eager PyTorch, torch.compile), which take steps in turns. Prints a Markdown
table and a line of JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

CONFIGS = {
  "l2p": "configs/cifar100_l2p.py",
  "dualprompt": "configs/cifar100_dualprompt.py",
}
SIDES = ("ours", "torch eager", "torch compiled")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--torch_python", default=sys.executable)
  parser.add_argument("--methods", nargs="+", default=list(CONFIGS))
  parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
  parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--batch_size", type=int, default=16)
  parser.add_argument("--image_size", type=int, default=224)
  parser.add_argument("--variant", default="ViT-B_16")
  parser.add_argument("--timm", default="vit_base_patch16_224")
  parser.add_argument(
    "--autocast",
    action="store_true",
    help="bfloat16 in torch by autocast instead of bfloat16 weights",
  )
  parser.add_argument("--work", help=argparse.SUPPRESS)
  return parser.parse_args(argv)


def our_steps(method: str, dtype: str, args: argparse.Namespace) -> Any:
  """Returns {"train": step, "evaluate": step} of this project."""
  import jax
  import workload

  from libml.train import steps

  command = [CONFIGS[method], "--dtype", dtype, "--variant", args.variant]
  command += ["--batch_size", str(args.batch_size)]
  command += ["--image_size", str(args.image_size)]
  load, _ = workload.start("", command)
  make = steps.make_train_step
  step = make(load.method.loss, load.method.extra_args, load.optimizer)
  step = jax.jit(step, donate_argnums=0)
  # Measure one reading, without vote, as torch_step.py does.
  alone = dict(vote_group=0, model=load.method.model)
  judge = type(load.method)(**{**vars(load.method), **alone})
  fixed = jax.jit(judge.precompute)(
    load.state.params, load.state.memory, load.batch
  )
  predict, observe = judge.predict, judge.observe
  measure = jax.jit(
    steps.make_evaluate_step(predict, judge.problem.measure, observe)
  )
  constants = judge.problem.constants(range(100), 100)
  state = load.state

  def train():
    nonlocal state
    state, metrics = step(state, {"train": load.batch})
    return float(metrics["loss"])

  def evaluate():
    batch = {**load.batch, **fixed}
    return jax.block_until_ready(
      measure(state.params, state.memory, batch, constants)
    )

  return {"train": train, "evaluate": evaluate}


def work(args: argparse.Namespace) -> None:
  """Takes a step for each line of standard input and prints its seconds."""
  side, method, dtype = json.loads(args.work)
  if side == "ours":
    calls = our_steps(method, dtype, args)
  else:
    import torch
    import torch_step

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    calls = torch_step.make(
      args.timm,
      method,
      dtype,
      args.batch_size,
      args.image_size,
      compiled=side == "torch compiled",
      autocast=args.autocast and dtype == "bfloat16",
    )
  print("ready", flush=True)
  threads = len(os.sched_getaffinity(0))
  for line in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    calls[line.strip()]()
    wall = time.perf_counter() - wall
    cpu = (time.process_time() - cpu) / threads
    print(json.dumps({"wall": wall, "cpu": cpu}), flush=True)


def compare(method: str, dtype: str, args: argparse.Namespace) -> dict:
  """Returns {step: {side: {"wall": s, "cpu": s}}}, medians over the rounds.

  Raises:
    RuntimeError: A process ended early.
  """
  flags = [f"--{n}={getattr(args, n)}" for n in ("batch_size", "image_size")]
  flags += [f"--variant={args.variant}", f"--timm={args.timm}"]
  flags += ["--autocast"] * args.autocast
  workers = {}
  for side in args.sides:
    python = sys.executable if side == "ours" else args.torch_python
    task = json.dumps([side, method, dtype])
    workers[side] = subprocess.Popen(
      [python, __file__, f"--work={task}", *flags],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    _answer(workers[side], side)  # wait: only one process at a time is set up
  taken: dict[str, Any] = {
    step: {side: [] for side in workers} for step in ("train", "evaluate")
  }
  try:
    for step, sides in taken.items():
      for number in range(args.rounds + 1):
        for side, worker in workers.items():
          worker.stdin.write(f"{step}\n")
          worker.stdin.flush()
          seconds = json.loads(_answer(worker, side))
          if number:  # the first round compiles
            sides[side].append(seconds)
  finally:
    for worker in workers.values():
      worker.stdin.close()
      worker.wait()
      worker.stdout.close()
  return {
    step: {
      side: {
        clock: statistics.median(s[clock] for s in seconds)
        for clock in ("wall", "cpu")
      }
      for side, seconds in sides.items()
    }
    for step, sides in taken.items()
  }


def _answer(worker: subprocess.Popen, side: str) -> str:
  line = worker.stdout.readline()
  if not line:
    raise RuntimeError(
      f"The process of {side!r} ended early; its error is printed above."
    )
  return line


def ratios(sides: dict[str, dict[str, float]], clock: str) -> float | None:
  """Returns the fastest peer's seconds over this project's; None if one lacks.

  Args:
    sides: {side: {clock: seconds}}.
    clock: "wall" or "cpu".
  """
  peers = [s[clock] for side, s in sides.items() if side != "ours"]
  return (
    min(peers) / sides["ours"][clock] if peers and "ours" in sides else None
  )


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the command line, compares, and prints the results."""
  args = parse(argv)
  if args.work:
    work(args)
    return
  results = []
  print("| step | type |", *(f"{side} |" for side in args.sides), "ratio |")
  print("|---" * (3 + len(args.sides)) + "|")
  for method in args.methods:
    for dtype in args.dtypes:
      for step, sides in compare(method, dtype, args).items():
        ratio = {clock: ratios(sides, clock) for clock in ("wall", "cpu")}
        cells = [f"{s['wall']:.2f} ({s['cpu']:.2f})" for s in sides.values()]
        shown = [f"{r:.2f}" for r in ratio.values() if r is not None]
        cells += [f"{shown[0]} ({shown[1]})" if shown else ""]
        print(f"| {method}, {step} | {dtype} |", " | ".join(cells), "|")
        sys.stdout.flush()
        results.append(
          {
            "method": method,
            "step": step,
            "dtype": dtype,
            "seconds": sides,
            "ratio": ratio,
          }
        )
  print(json.dumps({"peers": results, "batch_size": args.batch_size}))


if __name__ == "__main__":
  main()
