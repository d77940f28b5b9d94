"""CASIA-100 and ImageNet100: what is known of them, and what a run checks."""

import importlib
import logging
import random

import pytest
from PIL import Image

import main
from configs import casia100


def load(name, arg):
  return importlib.import_module(f"configs.{name}").get_config(arg)


def test_order_is_python_s_shuffle():
  order = list(range(100))
  random.Random(1337).shuffle(order)
  assert casia100.ORDER == tuple(order)


def test_people_are_in_the_order_of_their_folders():
  assert len(casia100.IDENTITIES) == len(set(casia100.IDENTITIES)) == 100
  assert sorted(casia100.IDENTITIES) == list(casia100.IDENTITIES)


def test_counts_agree_with_each_other():
  counts = dict(casia100.EXPECTED["test_counts"])
  order, total = casia100.ORDER, casia100.EXPECTED["test_total"]
  assert total + casia100.EXPECTED["train_total"] == 44_697
  assert sum(counts[order[n : n + 20]] for n in range(0, 100, 20)) == total
  assert counts[order[:10]] + counts[order[10:]] == total
  assert counts[order[95:]] < counts[order[90:]] < counts[order[80:]]
  assert counts[order[50:]] < counts[order[10:]]
  assert counts[order[:5]] < counts[order[:10]] < counts[order[:20]]


# From a config to the images.


@pytest.fixture
def faces(tmp_path):
  """One training and one test image of each of the 100 people."""
  image = Image.new("RGB", (112, 112))
  for split in ("train", "test"):
    for name in casia100.IDENTITIES:
      folder = tmp_path / "faces" / split / name
      folder.mkdir(parents=True)
      image.save(folder / "0.jpg")
  return tmp_path / "faces"


def test_config_checks_the_faces_and_forgets_from_the_end(faces, caplog):
  config = load("casia100_gs_lora", f"single=5,shots=1,folder={faces}")
  with caplog.at_level(logging.WARNING, logger="palimpsest"):
    source, scenario = main.build_scenario(config)
  (warning,) = (
    record.getMessage()
    for record in caplog.records
    if record.name == "palimpsest"  # TensorFlow may warn, too
  )
  for part in (
    "100 train images instead of 35713",
    "100 test images instead of 8984",
    "5 test images of classes 73, 46, 90, 68, 79 instead of 419",
    "20 test images of classes 83, 17, 10, 9, 89 and 15 more instead of 1688",
  ):
    assert part in warning
  (stage,) = scenario.stages
  assert stage.classes["forget"] == casia100.ORDER[95:]
  assert sorted(stage.train["retain"].labels) == sorted(casia100.ORDER[:95])
  assert source.class_names == casia100.IDENTITIES


def test_wrong_people_are_an_error(faces):
  for split in ("train", "test"):
    (faces / split / "1022").rename(faces / split / "1023")
  config = load("casia100_gs_lora", f"single=5,shots=1,folder={faces}")
  with pytest.raises(ValueError, match="missing 1022; not expected 1023"):
    main.build_scenario(config)


def test_others_of_imagenet_stay_in_the_head(faces, caplog):
  others = faces.parent / "others"
  for name in ("a", "b"):
    (others / name).mkdir(parents=True)
    Image.new("RGB", (30, 40)).save(others / name / "0.png")
  options = f"folder={faces},others={others},names=FILE"
  config = load("imagenet100_gs_lora", options)
  assert config.init_head_names == "FILE"
  config.scenario.shots = 1
  source, scenario = main.build_scenario(config)
  assert source.other_names == ("a", "b")
  assert scenario.num_classes == 102
  assert len(scenario.stages) == 4
  assert "100 test images instead of 5000" in caplog.text
