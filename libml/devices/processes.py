"""Runs on several processes: how they start, decide together, and end.

All processes run the same program with the same config; only process 0 writes
files. A run of one process does not communicate.
"""

import contextlib
import fcntl
import functools
import json
import os
import pathlib
import re
import secrets
import signal
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

# Timeouts in seconds; a dead process is detected after HEARTBEAT_TIMEOUT.
START_TIMEOUT = 120
HEARTBEAT_TIMEOUT = 30
SHUTDOWN_TIMEOUT = 30
PARTING_TIMEOUT = 5


def join(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  detect: bool = False,
) -> None:
  """Connects this process to the others of a run.

  It must be called before any other function of JAX. Without arguments the run
  has one process.

  Args:
    coordinator: "HOST:PORT", the address of process 0.
    num_processes: Number of processes of the run.
    process_id: Number of this process, from 0.
    detect: Whether JAX detects all three, on a TPU pod or under SLURM.

  Raises:
    ValueError: Only some of the three are given, a value is invalid, or there
      is nothing to detect.
  """
  given = (coordinator, num_processes, process_id)
  alone = given == (None, None, None) and not detect
  if not alone or jax.config.values["jax_num_cpu_devices"] > 1:
    # On few cores, queued steps of several CPU devices deadlock in their
    # collectives, and the process aborts.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
  if alone:
    return
  if detect == (given != (None, None, None)) or (not detect and None in given):
    raise ValueError(
      "--coordinator, --num_processes and --process_id go together; give all "
      "three, or only --distributed on a TPU pod or under SLURM."
    )
  if not detect:
    _check(*given)
  try:
    jax.distributed.initialize(
      *given,
      initialization_timeout=START_TIMEOUT,
      heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
      shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
      # JAX would listen on all interfaces. Used by process 0 alone.
      coordinator_bind_address=coordinator,
    )
  except ValueError as error:
    raise ValueError(
      f"--distributed found neither a TPU pod nor SLURM: {error} Give "
      "--coordinator, --num_processes and --process_id."
    ) from None


def _check(coordinator: Any, num_processes: Any, process_id: Any) -> None:
  if not re.fullmatch(r".+:\d+", coordinator):
    raise ValueError(f"--coordinator={coordinator} must be HOST:PORT.")
  if num_processes < 1:
    raise ValueError(f"--num_processes={num_processes} must be 1 or more.")
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f"--process_id={process_id} must lie in 0 to {num_processes - 1}, for "
      f"--num_processes={num_processes}."
    )


def is_first() -> bool:
  """Returns whether this is process 0, which writes files."""
  return jax.process_index() == 0


def first_says(question: Callable[[], bool]) -> bool:
  """Calls `question` on process 0 only; returns its answer on all processes."""
  answer = np.array(is_first() and question())
  if jax.process_count() == 1:
    return bool(answer)
  return bool(multihost_utils.broadcast_one_to_all(answer))


def all_say(answer: bool) -> bool:
  """Returns on all processes whether `answer` is True on all of them."""
  return not _others(np.uint32(answer), np.uint32(1))


def _others(value: np.uint32, expected: np.uint32 | None = None) -> list[int]:
  """Returns the processes whose value is not `expected` (None: process 0's)."""
  if jax.process_count() == 1:
    values = np.array([value])
  else:
    values = np.asarray(multihost_utils.process_allgather(value))
  wanted = values[0] if expected is None else expected
  return np.flatnonzero(values != wanted).tolist()


def check_same(what: str, value: Any) -> None:
  """Checks that all processes hold the same value.

  Args:
    what: Name of the value, for the error.
    value: Any value that JSON can represent.

  Raises:
    ValueError: The value differs on some process. All processes raise it.
  """
  text = json.dumps(value, sort_keys=True)
  others = _others(np.uint32(zlib.crc32(text.encode())))
  if others:
    raise ValueError(
      f"The processes {others} do not have the {what} of process 0. Start all "
      f"with the same; this one has {text[:2000]}."
    )


def check_shared(folder: pathlib.Path) -> None:
  """Makes a folder, and checks that all processes see the same one.

  Raises:
    ValueError: Some process sees another folder. All processes raise it.
  """
  if is_first():
    folder.mkdir(parents=True, exist_ok=True)
  if jax.process_count() == 1:
    return
  token = np.uint32(secrets.randbits(32))
  token = int(multihost_utils.broadcast_one_to_all(token))
  path = folder / f".shared-{token:08x}"
  if is_first():
    path.touch()
  first_says(lambda: True)  # A barrier: from here on the file exists.
  seen = _appears(path)
  missing = _others(np.uint32(seen), np.uint32(1))
  if is_first():
    path.unlink()
  if missing:
    raise ValueError(
      f"The processes {missing} do not see what process 0 writes to {folder}. "
      "Set --workdir, or PALIMPSEST_CACHE for weights that are made on first "
      "use, to a folder that all hosts share (NFS, a mounted bucket)."
    )


def _appears(path: pathlib.Path, seconds: float = 10) -> bool:
  until = time.monotonic() + seconds  # Network file systems lag.
  while not path.exists():
    if time.monotonic() > until:
      return False
    time.sleep(0.1)
  return True


@contextlib.contextmanager
def lock(path: pathlib.Path, *, wait: bool = True) -> Iterator[None]:
  """Holds a lock on the file `path` for all processes of this run.

  Process 0 takes the lock, and writes into the file who it is. The system
  releases the lock when that process ends, however it ends.

  Args:
    path: Of the file, in a folder that exists.
    wait: Whether to wait until another run releases the lock.

  Raises:
    ValueError: Another run has the lock, and `wait` is False.
  """
  with contextlib.ExitStack() as stack:

    def take() -> bool:
      file = stack.enter_context(open(path, "a+"))
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        file.close()
        return False
      file.truncate(0)
      began = time.strftime("%Y-%m-%d %H:%M:%S")
      where = f"process {os.getpid()} on {socket.gethostname()}"
      print(f"{where}, since {began}", file=file, flush=True)
      return True

    # Poll: the other processes wait in a collective, which may time out.
    while not first_says(take):
      if not wait:
        holder = path.read_text().strip()
        raise ValueError(
          f"{path.parent} is in use by {holder}. Wait for its end, stop it, or "
          "take another --workdir."
        )
      time.sleep(1)
    yield


def stop_on_signals() -> Callable[[], bool]:
  """Returns a should_stop: True once SIGTERM, SIGINT or SIGHUP has come.

  A second SIGINT (Ctrl-C) ends the process at once.
  """
  asked = []

  def note(number: int, _: Any) -> None:
    # os.write: print may be called here while it is printing.
    if not asked:
      asked.append(number)
      again = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
      os.write(2, f"Stopping after this step{again}.\n".encode())
    elif number == signal.SIGINT:
      shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # the hidden cursor
      os.write(2, f"{shown}Ended; the last checkpoint is kept.\n".encode())
      os._exit(128 + number)

  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, note)
  return functools.partial(bool, asked)


def agree(
  should_stop: Callable[[], bool], mesh: jax.sharding.Mesh
) -> Callable[[], bool]:
  """Returns a should_stop with the same result on all processes.

  Call i returns whether any process wanted to stop at call i - 1. If one
  process stopped alone, the others would wait for it in the collectives of
  their next step. All processes must call it equally often.
  """
  if jax.process_count() == 1:
    return should_stop
  rows = NamedSharding(mesh, P(mesh.axis_names))
  any_of = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P()))
  asked = []

  def agreed() -> bool:
    wishes = np.full(len(mesh.local_devices), should_stop())
    asked.append(
      any_of(jax.make_array_from_process_local_data(rows, wishes, (mesh.size,)))
    )
    # Return the last call's answer: waiting for this one's would leave the
    # devices idle after every step.
    return len(asked) > 1 and bool(asked.pop(0))

  return agreed


def has_lost_peer(error: BaseException | None) -> bool:
  """Returns whether an error means that another process has ended."""
  return jax.process_count() > 1 and "Gloo" in str(error)


def part(error: Exception) -> None:
  """Ends this process soon after an error, so that the others notice.

  If the error means that another process has ended, this one exits at once.
  """
  if has_lost_peer(error):
    print(
      "Another process of this run has ended; its own output says why. Start "
      f"all processes again to resume from the last checkpoint. ({error})",
      flush=True,
    )
    # An orderly exit would wait for the dead process.
    os._exit(1)
  if jax.process_count() > 1:
    # If all processes fail, an orderly exit is quick. If only this one fails,
    # the others wait for it until its connections close.
    end = threading.Timer(PARTING_TIMEOUT, os._exit, (1,))
    end.daemon = True
    end.start()
