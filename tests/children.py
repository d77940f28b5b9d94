"""Processes with devices of their own, in which everything is imported."""

import atexit
import multiprocessing
import os
import pathlib
import socket
import sys

import jax
from absl import app

import main
from libml.results import console

ROOT = pathlib.Path(__file__).resolve().parent.parent
SECONDS = 100


def start(target, *args, log, devices=1, cwd=ROOT):
  """Starts target(*args) on virtual devices; what it prints goes to a file."""
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(
    [
      "children",
      "libml.images.preprocess",
      "libml.results.writer",
      "clu.metric_writers",
    ]
  )
  cache = jax.config.jax_compilation_cache_dir
  process = context.Process(
    target=_live, args=(target, args, log, devices, cwd, cache)
  )
  before = os.environ.get("PYTHONPATH")
  os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
  try:
    process.start()
  finally:
    if before is None:
      del os.environ["PYTHONPATH"]
    else:
      os.environ["PYTHONPATH"] = before
  process.log = log
  return process


def _live(target, args, log, devices, cwd, cache):
  os.chdir(cwd)
  with open(log, "w") as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  jax.config.update("jax_num_cpu_devices", devices)
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
  try:
    target(*args)
  except SystemExit as end:
    if isinstance(end.code, str):  # as the interpreter does, before atexit
      print(end.code, file=sys.stderr, flush=True)
      raise SystemExit(1) from None
    raise
  finally:
    atexit._run_exitfuncs()  # a forked process leaves them out


def command_line(*arguments):
  """Is `python main.py ARGUMENTS`."""
  sys.argv = ["main.py", *map(str, arguments)]  # config_flags reads it, too
  app.run(main.main, flags_parser=console.parse)


def pair(workdir, *arguments, logs, own=((), ()), cwds=(ROOT, ROOT)):
  """Starts one command line as two processes that make one run.

  Args:
    workdir: Of both.
    *arguments: Of both.
    logs: Folder for what they print.
    own: Further arguments of each.
    cwds: Where each is started.
  """
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  flags = ["--coordinator", address, "--num_processes=2"]
  return [
    start(
      command_line,
      f"--workdir={workdir}",
      *flags,
      f"--process_id={number}",
      *arguments,
      *own[number],
      log=logs / f"{workdir.name}_{number}.log",
      cwd=cwds[number],
    )
    for number in range(2)
  ]


def finish(*processes):
  """Waits for processes; returns their exit codes and what they printed."""
  for process in processes:
    process.join(SECONDS)
    if process.is_alive():
      process.kill()
  return (
    [process.exitcode for process in processes],
    [process.log.read_text() for process in processes],
  )
