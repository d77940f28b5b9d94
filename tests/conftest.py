"""Two virtual CPU devices, a compilation cache, and where real data lies."""

import os
import pathlib
import subprocess
import sys
from importlib import metadata

# Read once at the first import of jax or TensorFlow, so set before either.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA compiles faster, here and in child processes.
_FLAGS = [
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
]
# A newer XLA does not know this flag, and a process with an unknown one aborts.
if metadata.version("jaxlib").startswith("0.10."):
  _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))

import figures  # noqa: E402  (the environment comes first)
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 2)
# Queued steps of several virtual devices starve each other's collectives on
# few cores, and the process aborts.
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update("jax_numpy_rank_promotion", "raise")
_CACHE = pathlib.Path.home() / ".cache" / "palimpsest" / "xla-tests"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def golden():
  """Returns a reader of stored reference figures: golden("l2p", "l2p_step").

  They are those of tests/golden, or of the folder PALIMPSEST_GOLDEN.
  """
  return figures.Reader(figures.folder())


@pytest.fixture(scope="module", autouse=True)
def whole_figures(request):
  """Fails a module that leaves keys of its `FIGURES` unread, see figures.py."""
  claimed = getattr(request.module, "FIGURES", None)
  option = request.config.option
  chosen = any("::" in argument for argument in request.config.args)
  if not claimed or chosen or option.keyword or option.markexpr or option.lf:
    yield
    return
  reader = request.getfixturevalue("golden")
  reader.read.clear()
  failed = request.session.testsfailed
  yield
  wrong = reader.unread(claimed)
  if wrong and request.session.testsfailed == failed:
    pytest.fail("\n".join(wrong), pytrace=False)


@pytest.fixture(scope="session")
def real_data():
  """Returns the folder of real images and weights, or skips."""
  folder = os.environ.get("PALIMPSEST_DATA", ROOT.parent / "shared" / "data")
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    pytest.skip(f"No real data at {folder}; set PALIMPSEST_DATA to its folder.")
  return folder


@pytest.fixture(scope="session")
def main_py():
  """Returns a starter of main.py as a process of its own, as set up as here."""
  environment = {
    **os.environ,
    "JAX_NUM_CPU_DEVICES": "2",
    "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
    "JAX_COMPILATION_CACHE_DIR": str(_CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "PYTHONUNBUFFERED": "1",
  }

  def start(config, workdir, *arguments):
    command = [sys.executable, "main.py", "--my_config", config]
    return subprocess.Popen(
      [*command, "--workdir", str(workdir), *arguments],
      cwd=ROOT,
      env=environment,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
    )

  return start
