"""The input benchmark runs, and says what it measured."""

import json

import pytest

from benchmarks import input as benchmark


def test_benchmark_prints_one_line(capsys):
  benchmark.run(
    [
      "configs/cifar100_l2p.py",
      "configs/cifar10_deit_l2p.py",
      "--set=model.image_size=32",
      "--set=preprocess.resize=36",
      "--set=preprocess.randaugment=(1, 5.0)",
      "--set=mixing.mixup=0.2",
      "--batch_size=4",
      "--images=4",
      "--seconds=0.01",
      "--rounds=1",
    ]
  )
  (line,) = capsys.readouterr().out.splitlines()
  found = json.loads(line)
  assert found["image_size"] == {
    "configs/cifar100_l2p.py": 32,
    "configs/cifar10_deit_l2p.py": 32,
  }
  for result in found["results"].values():
    assert set(result) == {"bytes", "path", "array"}
    for kind in result.values():
      assert set(kind) == {"train", "eval"}
      assert all(
        value > 0 for rates in kind.values() for value in rates.values()
      )


def test_benchmark_reads_configs_with_arguments():
  config = benchmark.load("configs/cifar100_l2p.py:smoke", ["seed=7"])
  assert (config.model.image_size, config.seed) == (8, 7)
  with pytest.raises(KeyError):
    benchmark.load("cifar100_l2p", ["preprocess.rotate=1"])
