"""CORe50 and notMNIST, from a download that this test makes up, to a run."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from libml.datasets import DATASETS
from libml.datasets import Subset
from libml.datasets import builders
from libml.datasets import memory
from libml.datasets import prepare
from libml.images.preprocess import Preprocess
from libml.pipeline import streams


def _save(path, level, *, mode="RGB", size=4):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new(mode, (size, size), level).save(path)


def _pixels(split):
  """The first pixel of each image, [N, channels]."""
  return np.array([tf.io.decode_image(i)[0, 0] for i in split.images])


# CORe50.


@pytest.fixture(scope="module")
def core50_download(tmp_path_factory):
  """Two pictures of each object in each session; colour: session, object, n."""
  root = tmp_path_factory.mktemp("core50_128x128")
  for session in range(1, 12):
    for number in range(1, 51):
      for n in range(2):
        name = f"C_{session:02}_{number:02}_{n:03}.png"
        path = root / f"s{session}" / f"o{number}" / name
        _save(path, (session, number, n))
  return root


@pytest.fixture(scope="module")
def core50(core50_download, tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  prepare.main(
    ["core50", "--source", str(core50_download), "--data_dir", str(folder)]
  )
  return str(folder)


def test_core50_comes_by_session(core50):
  found = DATASETS["core50"](data_dir=core50)
  order = [1, 2, 4, 5, 6, 8, 9, 11]
  assert [part.name for part in found.parts] == [f"core50_s{n}" for n in order]
  for part, session in zip(found.parts, order, strict=True):
    assert part.class_names == tuple(f"o{n}" for n in range(1, 51))
    train = part.splits["train"]
    pixels = _pixels(train)
    assert set(pixels[:, 0]) == {session}
    np.testing.assert_array_equal(pixels[:, 1] - 1, train.labels)
    np.testing.assert_array_equal(np.bincount(train.labels), [2] * 50)


def test_core50_has_one_test_split(core50):
  found = DATASETS["core50"](data_dir=core50)
  (test,) = {part.splits["test"] for part in found.parts}
  pixels = _pixels(test)
  np.testing.assert_array_equal(pixels[:, 0], np.repeat([3, 7, 10], 100))
  np.testing.assert_array_equal(pixels[:, 1] - 1, test.labels)
  small = DATASETS["core50"](data_dir=core50, per_class=1)
  (test,) = {part.splits["test"] for part in small.parts}
  assert len(test) == 50 == len(small.parts[3].splits["train"])


def test_core50_keeps_files_as_they_are(core50, core50_download):
  train = DATASETS["core50"](data_dir=core50).parts[0].splits["train"]
  files = {path.read_bytes() for path in core50_download.glob("s1/*/*.png")}
  assert set(train.images) == files and len(files) == 100
  chain = Preprocess(size=4, eval="native")
  subset = Subset.of(train, [6])
  (batch,) = streams.sweep(subset, chain, batch_size=2)
  np.testing.assert_allclose(255 * batch["image"][:, 0, 0, 1], 7, rtol=1e-5)


def test_core50_of_other_sessions(core50):
  options = {"data_dir": core50, "sessions": [9, 3], "test_sessions": [1]}
  found = DATASETS["core50"](**options)
  assert [part.name for part in found.parts] == ["core50_s9", "core50_s3"]
  for wrong in ([0], [12], [2, 2], [1], []):
    with pytest.raises(ValueError, match="different numbers in 1 to 11"):
      DATASETS["core50"](**{**options, "sessions": wrong})


def test_core50_larger_than_memory_can_be_read_in_part(core50, monkeypatch):
  files = pathlib.Path(core50).glob("core50/1.0.0/*.tfrecord*")
  size = sum(path.stat().st_size for path in files)
  monkeypatch.setattr(memory, "available", lambda: size)
  with pytest.raises(ValueError, match=r"portion='\[:50%\]'"):
    DATASETS["core50"](data_dir=core50)
  # A few images leave some objects out.
  with pytest.raises(ValueError, match="'core50_s1' has an empty class"):
    DATASETS["core50"](data_dir=core50, portion="[:50%]")
  found = DATASETS["core50"](data_dir=core50, sessions=[1, 2])
  assert len(found.parts) == 2


def test_core50_in_a_collection_shares_its_test_split(core50):
  part = {"name": "core50", "data_dir": core50}
  found = DATASETS["collection"](order=("core50",), per_class=1, core50=part)
  assert len({part.splits["test"] for part in found.parts}) == 1
  assert len(found.parts) == 8


def test_a_session_is_a_source_of_its_own(core50):
  found = DATASETS["tfds"](
    builder="core50",
    data_dir=core50,
    train_split="s1+s2[:50%]",
    test_split="s10",
  )
  assert (len(found.splits["train"]), len(found.splits["test"])) == (150, 100)


# notMNIST.


@pytest.fixture
def not_mnist_download(tmp_path):
  """Ten pictures a letter, two broken files, and a hidden one (macOS)."""
  root = tmp_path / "notMNIST_small"
  for label, letter in enumerate("ABCDEFGHIJ"):
    for n in range(10):
      level = 10 * label + n
      _save(root / letter / f"{n}.png", level, mode="L", size=28)
  (root / "A" / "RGVtb2NyYXRpY2E=.png").write_bytes(b"")
  (root / "F" / "cut.png").write_bytes((root / "F/0.png").read_bytes()[:50])
  _save(root / "B" / "._0.png", 255, mode="L", size=28)
  return root


def test_not_mnist_skips_broken_and_hidden_files(
  not_mnist_download, tmp_path, capsys
):
  arguments = ["--source", str(not_mnist_download), "--data_dir", str(tmp_path)]
  prepare.main(["not_mnist", *arguments])
  said = capsys.readouterr().out
  assert "train: 100 images" in said
  assert "2 broken files skipped: A/RGVtb2NyYXRpY2E=.png, F/cut.png" in said
  found = DATASETS["not_mnist"](data_dir=str(tmp_path))
  train, test = found.splits["train"], found.splits["test"]
  assert found.class_names == tuple("ABCDEFGHIJ")
  assert (len(train), len(test)) == (80, 20)
  levels = [_pixels(split)[:, 0] for split in (train, test)]
  assert sorted(np.concatenate(levels)) == list(range(100))
  for split, level in zip((train, test), levels, strict=True):
    np.testing.assert_array_equal(split.labels, level // 10)


# What is refused.


@pytest.mark.parametrize("name", builders.BUILDERS)
def test_other_layouts_are_named(core50_download, tmp_path, name):
  source = str(core50_download / "s3")
  with pytest.raises(ValueError, match=r"must hold the folders.*holds o1, o10"):
    prepare.prepare(name, source=source, data_dir=str(tmp_path))
  assert not builders.load(name)(data_dir=str(tmp_path)).is_prepared()


def test_missing_folders_are_named(not_mnist_download, tmp_path):
  (not_mnist_download / "C").rename(tmp_path / "C")
  with pytest.raises(ValueError, match=r"in 1 of the 10 folders: C\."):
    prepare.prepare(
      "not_mnist", source=str(not_mnist_download), data_dir=str(tmp_path)
    )


def test_broken_picture_of_core50_is_named(core50_download, tmp_path):
  broken = core50_download / "s1" / "o1" / "C_01_01_002.png"
  broken.write_bytes(b"hello")
  try:
    with pytest.raises(ValueError, match=f"Cannot decode {broken}"):
      prepare.prepare(
        "core50", source=str(core50_download), data_dir=str(tmp_path)
      )
  finally:
    broken.unlink()


def test_sources_that_are_not_there(core50, tmp_path):
  (tmp_path / "empty").mkdir()
  for source in (tmp_path / "nowhere", tmp_path / "empty"):
    with pytest.raises(FileNotFoundError, match="The folder .*unpacked downl"):
      prepare.prepare("core50", source=str(source), data_dir=str(tmp_path))
  with pytest.raises(SystemExit, match="FileExistsError: .*remove it first"):
    prepare.main(["core50", "--source", core50, "--data_dir", core50])
