"""Defects put into the code on purpose: do the tests notice each?

  python tests/breaks.py
  python tests/breaks.py --only 3,7

Each break is applied alone, in a copy of the working tree, and its tests run
there until the first one fails. The exit status is 1 where a break is not
caught. A break is code that runs and computes something wrong: the error that
the tests must notice is the wrong result.
"""

import argparse
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - .*)?$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Break:
  """One defect.

  Attributes:
    what: The defect, in one line.
    file: That has it, relative to the repository's root.
    old: Text that stands in the file exactly once.
    new: Takes its place.
    tests: Arguments of pytest; one of these tests must fail.
  """

  what: str
  file: str
  old: str
  new: str
  tests: tuple[str, ...]


BREAKS = (
  Break(
    "a branch holds leaves of others whose names only begin alike",
    "libml/trees.py",
    'name.startswith(f"{branch}/")',
    "name.startswith(branch)",
    ("tests/anatomy_test.py",),
  ),
  Break(
    "label smoothing gives probability to classes that the loss masks",
    "libml/images/mixing.py",
    "present / tf.reduce_sum(present)",
    "tf.ones_like(present) / self.num_classes",
    ("tests/mixing_test.py",),
  ),
  Break(
    "held-out images stay in the training split",
    "libml/datasets/holdout.py",
    'splits={"train": train.rows(left),',
    'splits={"train": train,',
    ("tests/datasets_test.py",),
  ),
  Break(
    "a class may be both among those to forget and those to retain",
    "libml/datasets/swap.py",
    'both = names["forget"] & names["retain"]',
    'both = names["forget"] & set()',
    ("tests/bad_swap_test.py",),
  ),
  Break(
    "hidden files of a download count as its images",
    "libml/datasets/builders/layout.py",
    'and not path.name.startswith(".")',
    "",
    ("tests/builders_test.py",),
  ),
  Break(
    "processes compare the name of a value and not the value",
    "libml/devices/processes.py",
    "zlib.crc32(text.encode())",
    "zlib.crc32(what.encode())",
    ("tests/processes_test.py", "-k", "misfits"),
  ),
  Break(
    "the proximal step's threshold lacks the learning rate",
    "libml/optim/proximal_step.py",
    "threshold = rate * alpha * penalty.gain",
    "threshold = alpha * penalty.gain",
    ("tests/proximal_test.py",),
  ),
  Break(
    "parameters shrunk together may lie partly in a group that never shrinks",
    "libml/optim/optimizer.py",
    "if len(where) > 1 or not where <= self.proximal:",
    "if not where & self.proximal:",
    ("tests/bad_forgetting_test.py", "-k", "shrinks"),
  ),
  Break(
    "a resumed round that continues another one repeats its first batches",
    "libml/pipeline/stage_data.py",
    "done + start",
    "start",
    ("tests/resume_test.py",),
  ),
  Break(
    "all processes train on the first one's part of each batch",
    "libml/pipeline/stage_data.py",
    "process_index=index,\n        process_count=count,\n        mixing",
    "process_index=0,\n        process_count=count,\n        mixing",
    ("tests/processes_test.py", "-k", "one_device_finds"),
  ),
  Break(
    "hits on padding count in the accuracy",
    "libml/problems/classification.py",
    "jnp.sum(hits & mask, dtype=jnp.int32)",
    "jnp.sum(hits, dtype=jnp.int32)",
    ("tests/problems_test.py",),
  ),
  Break(
    "a request's own classes are among those to retain",
    "libml/scenarios/forgetting.py",
    "for request in requests[i + 1 :] for c",
    "for request in requests[i:] for c",
    ("tests/forgetting_test.py",),
  ),
  Break(
    "audits ask the edited model in place of the first one",
    "libml/audit/audits.py",
    'models = {"before": self.first,',
    'models = {"before": params,',
    ("tests/audits_test.py",),
  ),
  Break(
    "the table shows the best request in place of the worst",
    "libml/results/tables.py",
    '"forget": max(',
    '"forget": min(',
    ("tests/forgetting_tables_test.py",),
  ),
  Break(
    "a damaged checkpoint is restored",
    "libml/train/checkpoint.py",
    'if fingerprint(got.state) == got.progress["checksums"]:',
    'if got.progress["checksums"]:',
    ("tests/checkpoint_test.py",),
  ),
  Break(
    "checkpoints lack frozen parameters that the method rewrites",
    "libml/train/resume.py",
    "return trainable[leaf] or bool(re.fullmatch(method.rewrites, leaf))",
    "return trainable[leaf]",
    ("tests/resume_test.py",),
  ),
  Break(
    "a training step keeps a second copy of all parameters",
    "libml/train/trainer.py",
    "donate_argnums=0,\n      out_shardings=(",
    "out_shardings=(",
    ("tests/loop_test.py", "-k", "buffers"),
  ),
  Break(
    "only a stop saves a checkpoint inside a stage",
    "libml/train/trainer.py",
    "if due:\n      walk.save()",
    "if due and stop:\n      walk.save()",
    ("tests/resume_test.py", "-k", "swapping"),
  ),
  Break(
    "the loss of a task sees the classes of other tasks",
    "methods/inflora.py",
    'logits = losses.mask_logits(outputs["logits"], memory["classes"])',
    'logits = outputs["logits"]',
    ("tests/methods_test.py", "-k", "masked"),
  ),
  Break(
    "a network is trained afresh although some weights are frozen",
    "methods/retrain.py",
    "if frozen:",
    "if frozen and not params:",
    ("tests/bad_baselines_test.py", "-k", "frozen"),
  ),
  Break(
    "prompts are looked up by the trained model, not by the first one",
    "methods/parts/prompting.py",
    'jax.lax.stop_gradient(memory.get("query", params))',
    "jax.lax.stop_gradient(params)",
    ("tests/methods_test.py", "-k", "initial_queries"),
  ),
  Break(
    "the student is its own teacher",
    "methods/parts/teaching.py",
    'return trees.update(params, memory["teacher"])',
    "return params",
    ("tests/teaching_test.py",),
  ),
  Break(
    "an export leaves the adapters out of the kernels",
    "models/export.py",
    "lora.split(lora.merge(params, model.lora_scale))",
    "lora.split(params)",
    ("tests/export_test.py",),
  ),
  Break(
    "to undo a request adds its edit once more",
    "models/edits/__init__.py",
    "[edits[n] for n in requests], times=-1",
    "[edits[n] for n in requests], times=1",
    ("tests/edits_test.py",),
  ),
  Break(
    "learning rates are not scaled to the batch",
    "configs/cifar100_l2p.py",
    "config.optimizer.lr_batch_size = 256",
    "config.optimizer.lr_batch_size = None",
    ("tests/configs_test.py", "-k", "original"),
  ),
  Break(
    "the paper's batch has the vote group of another batch",
    "configs/cifar100_dualprompt.py",
    "config.method.vote_group = 16",
    "config.method.vote_group = 24",
    ("tests/configs_test.py", "-k", "paper_values"),
  ),
  Break(
    "a batch of a device is taken for the whole batch",
    "main.py",
    "settings_lib.with_global_batch(weights.settle(config), mesh)",
    "weights.settle(config)",
    ("tests/devices_test.py", "-k", "per_device"),
  ),
  Break(
    "learning rates fall where the batch grows",
    "libml/optim/optimizer.py",
    "lr_scale = batch_size / lr_batch_size",
    "lr_scale = lr_batch_size / batch_size",
    ("tests/optim_test.py", "-k", "scaled"),
  ),
  Break(
    "the table over seeds shows the best request in place of the worst",
    "benchmarks/over_seeds.py",
    "return lambda record: max(",
    "return lambda record: min(",
    ("tests/compare_test.py", "-k", "deviations"),
  ),
)


def copy(target: pathlib.Path) -> None:
  """Copies the working tree's files, without what git ignores."""
  listed = subprocess.run(
    ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  )
  for name in filter(None, listed.stdout.split("\0")):
    if (ROOT / name).is_file():
      (target / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(ROOT / name, target / name)


def apply(broken: Break, root: pathlib.Path) -> int:
  """Writes a break into a tree; returns the line where it begins.

  Raises:
    ValueError: The old text does not stand there exactly once.
  """
  path = root / broken.file
  text = path.read_text()
  if text.count(broken.old) != 1:
    raise ValueError(
      f"{broken.file} holds {broken.old!r} {text.count(broken.old)} times, and "
      "a break replaces it where it stands once; correct tests/breaks.py."
    )
  before, _, after = text.partition(broken.old)
  path.write_text(before + broken.new + after)
  return before.count("\n") + 1


def run(root: pathlib.Path, tests: tuple[str, ...]) -> tuple[int, str]:
  """Runs tests in a tree up to the first failure; returns status and output."""
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  done = subprocess.run(
    [sys.executable, "-m", "pytest", "-q", "-x", *tests],
    cwd=root,
    env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  return done.returncode, done.stdout


def catch(broken: Break) -> tuple[int, str | None, str]:
  """Returns a break's line, the test that catches it (or None), the output."""
  with tempfile.TemporaryDirectory(prefix="breaks") as folder:
    root = pathlib.Path(folder)
    copy(root)
    line = apply(broken, root)
    code, output = run(root, broken.tests)
  found = _FAILED.search(output)
  return line, found[1] if code == 1 and found else None, output


def main() -> None:
  """Applies the breaks, and says which test catches each.

  Raises:
    SystemExit: With 1, where a break is not caught.
  """
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", help="numbers from 1, with commas: 3,7")
  only = parser.parse_args().only
  chosen = map(int, only.split(",")) if only else range(1, len(BREAKS) + 1)
  missed = 0
  for number in chosen:
    broken = BREAKS[number - 1]
    line, test, output = catch(broken)
    print(f"{number:2} {broken.file}:{line}: {broken.what}")
    print(f"   {f'caught by {test}' if test else 'NOT CAUGHT'}", flush=True)
    if not test:
      missed += 1
      print(output[-2000:], file=sys.stderr)
  sys.exit(missed > 0)


if __name__ == "__main__":
  main()
