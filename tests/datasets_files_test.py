"""The user's files: what is read and what refused."""

import os

import numpy as np
import pytest
from PIL import Image

from libml.datasets import DATASETS
from libml.datasets import Subset
from libml.datasets import class_map
from libml.datasets import pairs
from libml.images.preprocess import Preprocess
from libml.pipeline import streams

ARRAYS = {
  "x_train": np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4),
  "y_train": np.array([[0], [1], [2], [0], [1], [2]]),
  "x_test": np.full((3, 4, 4), 7, np.uint8),
  "y_test": np.array([2, 1, 1], np.uint8),
}


def _npz(folder, **arrays):
  path = folder / "toy.npz"
  np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
  return path


def test_npz(tmp_path):
  names = np.array(["cat", "dog", "eel"])
  found = DATASETS["npz"](path=_npz(tmp_path, **ARRAYS, class_names=names))
  assert found.class_names == ("cat", "dog", "eel")
  train = found.splits["train"]
  np.testing.assert_array_equal(train.images[..., 0], ARRAYS["x_train"])
  assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
  assert found.splits["test"].labels.tolist() == [2, 1, 1]


def test_npz_classes_are_numbered_anew(tmp_path):
  found = DATASETS["npz"](path=_npz(tmp_path, **ARRAYS), classes=[2, 0])
  assert found.class_names == ("2", "0")
  train = found.splits["train"]
  assert train.labels.tolist() == [1, 0, 1, 0]
  np.testing.assert_array_equal(
    train.images[..., 0], ARRAYS["x_train"][[0, 2, 3, 5]]
  )
  assert found.splits["test"].labels.tolist() == [0]


@pytest.mark.parametrize(
  ("change", "options", "message"),
  [
    ({"y_test": None}, {}, "no y_test; it has x_train, y_train, x_test"),
    ({"y_train": np.array([0, 1], object)}, {}, "Cannot read .* np.savez"),
    ({"y_test": np.zeros(3)}, {}, "y_test are float64 .*integers"),
    ({"y_test": np.zeros(2, int)}, {}, "x_test, y_test: .* 3 images"),
    ({"x_train": np.zeros((6, 4, 4))}, {}, "x_train.*must be uint8"),
    ({"y_train": np.array([0, 0, 0, 0, 2, 2])}, {}, "empty class.*'1'"),
    ({"class_names": np.array(["a", "b"])}, {}, "label 2 is outside 0 to 1"),
    ({}, {"classes": [0, 3]}, r"\[0, 3\] must be different ids in 0 to 2"),
    ({}, {"classes": [0, 0]}, "different ids"),
  ],
)
def test_bad_npz_is_named(tmp_path, change, options, message):
  path = _npz(tmp_path, **{**ARRAYS, **change})
  with pytest.raises(ValueError, match=message):
    DATASETS["npz"](path=path, **options)


def test_npz_that_cannot_be_read(tmp_path):
  with pytest.raises(FileNotFoundError, match="nowhere.npz.*x_train"):
    DATASETS["npz"](path=tmp_path / "nowhere.npz")
  path = _npz(tmp_path, **ARRAYS)
  whole = path.read_bytes()
  np.save(tmp_path / "toy.npy", ARRAYS["x_train"])
  array = (tmp_path / "toy.npy").read_bytes()
  for content in (whole[:-200], whole[:200], array, b"", b"hello"):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Cannot read .*toy.npz"):
      DATASETS["npz"](path=path)


@pytest.fixture
def folder(tmp_path):
  """Two classes; image n of a class is grey level 10 n + 100 class."""
  for split, count in (("train", 3), ("test", 2)):
    for label, name in enumerate(("ant", "bee")):
      path = tmp_path / split / name
      path.mkdir(parents=True)
      for n in range(count):
        suffix = (".png", ".JPG", ".bmp")[n]
        level = 10 * n + 100 * label
        Image.new("RGB", (16, 16), (level,) * 3).save(path / f"{n}{suffix}")
  (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
  (tmp_path / "train" / ".cache").mkdir()
  return tmp_path


def test_folder(folder):
  found = DATASETS["folder"](root=str(folder))
  assert found.class_names == ("ant", "bee")
  assert found.splits["train"].labels.tolist() == [0, 0, 0, 1, 1, 1]
  assert found.splits["test"].labels.tolist() == [0, 0, 1, 1]
  chain = Preprocess(size=16, eval="native")
  subset = Subset.of(found.splits["train"])
  (batch,) = streams.sweep(subset, chain, batch_size=6)
  levels = np.rint(255 * batch["image"][:, 3, 3, 0])
  np.testing.assert_allclose(levels, [0, 10, 20, 100, 110, 120], atol=2)


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_folder_is_named(folder, split):
  (folder / split).rename(folder / "elsewhere")
  with pytest.raises(FileNotFoundError, match=f"/{split}.*root/train/CLASS"):
    DATASETS["folder"](root=folder)


def test_empty_class_is_named(folder):
  (folder / "train" / "cow").mkdir()
  with pytest.raises(ValueError, match="empty class.*'cow'"):
    DATASETS["folder"](root=folder)


def test_class_of_test_alone_is_named(folder):
  (folder / "test" / "cow").mkdir()
  with pytest.raises(ValueError, match="/train does not have: cow"):
    DATASETS["folder"](root=folder)


def _break(folder, kind):
  path = folder / "test" / "bee" / f"broken-{kind}.jpg"
  rng = np.random.default_rng(0)
  noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
  noise.save(path)
  content = {"text": b"hello", "empty": b"", "cut": path.read_bytes()[:-500]}
  path.write_bytes(content[kind])
  return path


@pytest.mark.parametrize("kind", ["text", "empty", "cut"])
def test_broken_image_is_named(folder, kind):
  path = _break(folder, kind)
  with pytest.raises(
    ValueError, match=f"Cannot decode {path}: .*Replace or"
  ) as error:
    DATASETS["folder"](root=folder)
  assert "{{" not in str(error.value) and "Iterator" not in str(error.value)
  # Unchecked, it fails when it is read, and no grey picture stands in.
  found = DATASETS["folder"](root=folder, verify=False)
  chain = Preprocess(size=16, resize=16)
  with pytest.raises(ValueError, match="An image cannot be used: "):
    list(streams.sweep(Subset.of(found.splits["test"]), chain, batch_size=4))


# Lists.


@pytest.fixture
def classes(tmp_path):
  """root/CLASS/*.png; the level is 10 n + 100 class."""
  for label, name in enumerate(("ant", "bee")):
    path = tmp_path / "photos" / name
    path.mkdir(parents=True)
    for n in range(3):
      level = 10 * n + 100 * label
      Image.new("RGB", (8, 8), (level,) * 3).save(path / f"{n}.png")
  return tmp_path


def _listed(root, train, test):
  lists = {"train_list": train, "test_list": test}
  for name, lines in lists.items():
    (root / name).write_text("\n".join(lines))
  paths = {name: str(root / name) for name in lists}
  return DATASETS["folder"](root=root / "photos", **paths)


def test_lists_choose_images_of_a_folder(classes):
  train = ["# by name", "bee/2.png", "", "./photos/ant/0.png ", "bee/0.png"]
  found = _listed(classes, train, ["old/photos/bee/1.png", "bee/1.png"])
  names = {
    key: ["/".join(path.split("/")[-2:]) for path in split.images]
    for key, split in found.splits.items()
  }
  assert names["train"] == ["ant/0.png", "bee/0.png", "bee/2.png"]
  assert names["test"] == ["bee/1.png"]
  assert found.splits["train"].labels.tolist() == [0, 1, 1]
  assert found.class_names == ("ant", "bee")
  assert found.origin == "folder photos, divided by train_list, test_list"
  chain = Preprocess(size=8, eval="native")
  subset = Subset.of(found.splits["test"])
  (batch,) = streams.sweep(subset, chain, batch_size=1)
  np.testing.assert_allclose(255 * batch["image"][0, 0, 0], 110)


@pytest.mark.parametrize(
  ("train", "test", "message"),
  [
    (["ant/0.png", "ant/7.png", "bee/8.png"], ["bee/1.png"],
     "2 of the 3 images .*train_list .*ant/7.png, bee/8.png. .* 6 images"),
    (["ant/0.png", "bee/0.png"], ["0.png"], "1 of the 1 .*test_list.* 0.png"),
    (["ant/0.png", "bee/0.png"], ["x/bee/0.png"], "both name 1 .*: bee/0.png"),
    (["# nothing", ""], ["bee/0.png"], "train_list names no image"),
    (["ant/0.png"], ["bee/0.png"], "empty class.*'bee'"),
  ],
)  # fmt: skip
def test_bad_lists_are_named(classes, train, test, message):
  with pytest.raises(ValueError, match=message):
    _listed(classes, train, test)


def _listed_yaml(root, train, test):
  paths = {"train_list": root / "train.yaml", "test_list": root / "test.yaml"}
  for path, content in zip(paths.values(), (train, test), strict=True):
    path.write_text(content)
  options = {name: str(path) for name, path in paths.items()}
  return DATASETS["folder"](root=root / "photos", **options)


def test_class_ids_of_yaml_lists_are_ours(classes):
  train = """data:
- data/old/test/ant/2.png
- data/old/train/bee/0.png
- data/old/train/ant/1.png
targets:
- 1
- 0
- 1
"""
  test = "data: [x/bee/1.png]\ntargets: [0]\n"
  found = _listed_yaml(classes, train, test)
  names = [path[-9:] for path in found.splits["train"].images]
  assert names == ["ant/1.png", "ant/2.png", "bee/0.png"]
  assert found.class_names == ("bee", "ant")
  assert found.splits["train"].labels.tolist() == [1, 1, 0]
  assert found.splits["test"].labels.tolist() == [0]
  train, test = (part.split("targets")[0] for part in (train, test))
  found = _listed_yaml(classes, train, test)
  assert found.class_names == ("ant", "bee")
  assert found.splits["train"].labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
  ("train", "test", "message"),
  [
    ("data: [ant/0.png, bee/0.png]\ntargets: [0, 0]", "targets: [0]",
     r"0 to 1: 'ant' has \[0\], 'bee' has \[0\]\. Correct"),
    ("data: [ant/0.png, ant/2.png]\ntargets: [0, 2]", "targets: [1]",
     r"0 to 1: 'ant' has \[0, 2\]\. "),
    ("data: [ant/0.png]\ntargets: [2]", "targets: [1]", r"'ant' has \[2\]"),
    ("data: [ant/0.png]\ntargets: [0]", "", r"'bee' has \[\]\. "),
    ("data: [bee/0.png]\ntargets: [0]", "targets: [0]", r"'ant' has \[\]"),
    ("data: [ant/0.png, bee/0.png]\ntargets: [0]", "", "integers under .*, 2;"),
    ("data: [ant/0.png]\ntargets: [true]", "", "integers under 'targets'"),
    ("data: {ant: 0}", "", "train.yaml must hold the image names as a list"),
    ("- ant/0.png", "", "the image names as a list under 'data'"),
    ("data: []", "", "train.yaml names no image"),
    ("data: [ant/0.png", "", "Cannot read .*train.yaml"),
    ("data: !!python/object/apply:os.getcwd []", "", "Cannot read .*yaml"),
  ],
)  # fmt: skip
def test_bad_yaml_lists_are_named(classes, train, test, message):
  with pytest.raises(ValueError, match=message):
    _listed_yaml(classes, train, f"data: [bee/1.png]\n{test}")


def test_classes_are_the_same_in_all_domains(tmp_path):
  images = ["real/ant/real_0.png", "real/bee/real_1.png", "ink/bee/ink_0.png"]
  for name in images:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(tmp_path / name)
  lists = {"train_list": images[:2], "test_list": images[2:]}
  for name, lines in lists.items():
    (tmp_path / name).write_text("\n".join(lines))
  options = {"root": tmp_path, "domains": ("ink", "real")}
  found = DATASETS["folder"](**options, **{n: str(tmp_path / n) for n in lists})
  assert found.class_names == ("ant", "bee")
  assert found.splits["train"].labels.tolist() == [0, 1]
  assert found.splits["test"].images.tolist() == [str(tmp_path / images[2])]
  with pytest.raises(ValueError, match=r"\['ink', 'real'\] need lists"):
    DATASETS["folder"](**options)
  options["domains"] = ("ink", "clay")
  with pytest.raises(FileNotFoundError, match="clay.* root/DOMAIN/CLASS/"):
    DATASETS["folder"](**options, **{n: str(tmp_path / n) for n in lists})


def test_missing_lists_are_named(classes):
  options = {"root": classes / "photos", "train_list": "nowhere.txt"}
  with pytest.raises(ValueError, match="test_list None; give both or none"):
    DATASETS["folder"](**options)
  with pytest.raises(FileNotFoundError, match="No list nowhere.txt"):
    DATASETS["folder"](**options, test_list="nowhere.txt")
  with pytest.raises(FileNotFoundError, match="needs root/CLASS/ with"):
    options["root"] = classes / "elsewhere"
    DATASETS["folder"](**options, test_list="nowhere.txt")


@pytest.mark.parametrize("label", [2**32 + 1, -1, 10_000_000])
def test_labels_that_no_class_can_have_are_named(tmp_path, label):
  labels = np.array([0, 1, 2, 0, 1, label])
  path = _npz(tmp_path, **{**ARRAYS, "y_train": labels})
  with pytest.raises(ValueError, match=f"y_train holds the label {label};"):
    DATASETS["npz"](path=str(path))


def test_other_pictures_of_the_same_names_are_noticed(tmp_path):
  for split in ("train", "test"):
    for name in ("a", "b"):
      folder = tmp_path / split / name
      folder.mkdir(parents=True)
      pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
      Image.fromarray(pixels).save(folder / "1.png")

  def prints():
    found = DATASETS["folder"](root=str(tmp_path))
    return found.description["splits"]["train"]

  before, path = prints(), tmp_path / "train" / "b" / "1.png"
  assert prints() == before
  data = bytearray(path.read_bytes())
  Image.fromarray(255 - pixels).save(path)
  after = prints()
  assert before["names_crc32"] == after["names_crc32"]
  assert before["content_crc32"] != after["content_crc32"]
  path.write_bytes(bytes(data) + b"more")
  assert prints()["sizes_crc32"] != before["sizes_crc32"]


def test_a_name_that_a_terminal_obeys_is_refused(tmp_path):
  names = np.array(["a", "\x1b[31mb", "c"])
  path = _npz(tmp_path, **ARRAYS, class_names=names)
  with pytest.raises(ValueError, match=r"class name '\\x1b\[31mb' holds"):
    DATASETS["npz"](path=str(path))


def test_a_list_of_empty_classes_stays_short(tmp_path):
  labels = np.array([0, 1, 2, 0, 1, 300_000])
  path = _npz(tmp_path, **{**ARRAYS, "y_train": labels})
  with pytest.raises(ValueError, match="and 299,987 more. Add") as error:
    DATASETS["npz"](path=str(path))
  assert len(str(error.value)) < 400


def test_a_pipe_or_a_folder_named_like_an_image_is_refused(folder):
  path = folder / "train" / "ant" / "x.jpg"
  path.mkdir()
  with pytest.raises(ValueError, match=f"{path} .* no regular file: remove"):
    DATASETS["folder"](root=folder)
  path.rmdir()
  os.mkfifo(path)  # to read it would take forever
  with pytest.raises(ValueError, match=f"{path} .* no regular file: remove"):
    DATASETS["folder"](root=folder)


def _listing(path, root):
  return DATASETS["folder"](root=root, train_list=path, test_list=path)


@pytest.mark.parametrize(
  ("name", "read"),
  [
    ("list.txt", _listing),
    ("list.yaml", _listing),
    ("pairs.txt", pairs.read),
    ("names.txt", lambda path, _: class_map.names(path)),
  ],
)
def test_text_of_another_encoding_is_named(folder, name, read):
  path = folder / name
  path.write_bytes("data: [été]\n".encode("latin-1"))
  with pytest.raises(ValueError, match=f"{path} is not UTF-8 .*save it as"):
    read(str(path), folder / "train")


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
  path = tmp_path / "names.txt"
  path.write_bytes("\ufeffcat\ndog\n".encode())
  assert class_map.names(path) == ("cat", "dog")
