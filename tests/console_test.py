"""The command line: where the config stands, and what its flags set."""

import pathlib

import pytest
from absl import flags
from ml_collections import config_flags

from libml.results import console

ROOT = pathlib.Path(__file__).resolve().parent.parent
# ml_collections' loader has it.
pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)
FILE = f"{ROOT}/configs/cifar100_lora_sub.py:tasks=20"


def read(*words):
  """Returns the config that a command line makes, and all flags."""
  argv = console.config_first(["main.py", *words], "my_config")
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file(
    "my_config", flag_values=values, lock_config=True, sys_argv=argv
  )
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  rest = values(argv)
  return holder.value, values, rest


@pytest.mark.parametrize(
  "file",
  [
    ("--my_config", FILE),
    (f"--my_config={FILE}",),
    ("-my_config", FILE),
    (f"-my_config={FILE}",),
  ],
)
def test_config_may_stand_anywhere(file):
  changes = ("--my_config.method.first_epochs=2", "--my_config.seed", "7")
  for words in (
    (*file, *changes, "--workdir", "out"),
    (*changes[:1], *file, *changes[1:], "--workdir", "out"),
    ("--workdir", "out", *changes, *file),
  ):
    config, values, _ = read(*words)
    assert config.scenario.num_tasks == 20
    assert (config.method.first_epochs, config.seed) == (2, 7)
    assert values.workdir == "out"


def test_what_is_no_flag_stays_where_it_is():
  config, _, rest = read("--my_config.seed=7", "--my_config", FILE, "--", "-x")
  assert (config.seed, rest) == (7, ["main.py", "-x"])
  argv = ["main.py", "--", "--my_config", FILE]
  assert console.config_first(argv, "my_config") == argv


def test_wrong_key_before_the_config_is_answered_with_the_nearest():
  with pytest.raises(AttributeError, match='Did you mean "margin"'):
    read("--my_config.method.margn=2.0", "--my_config", FILE)


def test_a_word_that_is_no_flag_is_refused(tmp_path, main_py):
  process = main_py(FILE, tmp_path, "my_config.epochs=3", "--audit")
  printed, _ = process.communicate()
  assert process.returncode == 1
  assert printed.splitlines()[-1].startswith(
    "ValueError: 'my_config.epochs=3' is no flag."
  )
  assert "write --my_config.epochs=3, or leave it out" in printed
