"""What a user gets wrong is said in one line, before the first step."""

import jax
import pytest

import main
from configs import cifar10_deit_l2p
from configs import cifar100_l2p
from libml import experiment
from models import pretrained


@pytest.fixture(autouse=True)
def no_step(monkeypatch):
  """Fails where training begins all the same."""

  def train(*unused):
    pytest.fail("training began")

  monkeypatch.setattr(experiment.Run, "_train", train)


def tiny(**changes):
  """Returns L2P's smoke run with one layer, some of its keys changed.

  Args:
    **changes: Keys with "__" for dots.
  """
  config = cifar100_l2p.get_config("smoke")
  config.model.depth = 1
  for key, value in changes.items():
    *folders, name = key.split("__")
    part = config
    for folder in folders:
      part = part[folder]
    part[name] = value
  return config


CASES = {
  "classes that do not divide": (
    {"scenario__num_tasks": 4},
    r"6 classes of 'synthetic' do not divide into 4 tasks.*\[1, 2, 3, 6\]",
  ),
  "patch that does not fit the image": (
    {"model__image_size": 10, "preprocess__eval": "center_crop"},
    r"10.*patch",
  ),
  "images of another size": (
    {"model__image_size": 16},
    r"8.*16.*Take 'center",
  ),
  "top_k above the pool": ({"method__top_k": 11}, r"top_k=11.*pool_size=10"),
  "vote group that does not divide": (
    {"method__vote_group": 3},
    r"vote.*3.*batch of 8",
  ),
  "devices that do not divide the batch": (
    {"batch_size": 9, "method__vote_group": 0},
    r"batch_size=9 .* 2 devices.*multiple of 2",
  ),
  "mesh of other devices": ({"mesh__model": 3}, r"model=3 .* 2 devices"),
  "no weights": (
    {"random_init": False},
    r"No pretrained weights: give --my_config.init_checkpoint",
  ),
  "warm-up as long as the stage": (
    {"optimizer__head__warmup_epochs": 1.0},
    r"warmup_epochs=1.0 .*below the 1 epochs",
  ),
  "settings of no group": (
    {"optimizer__groups": (("prompt", "prompt_pool/.*"), ("head", "head/.*"))},
    r"settings for 'backbone', which is no group",
  ),
  "parameter of no group": (
    {
      "optimizer__groups": (
        ("prompt", "prompt_pool/.*"),
        ("head", "head/.*"),
        ("backbone", "Transformer/.*"),
      )
    },
    r"Parameter 'cls' matches none",
  ),
  "sharding typo": (
    {"sharding": ((".*", "fspd"),)},
    r"rule 'fspd'.*mean 'fsdp'",
  ),
  "no epochs": ({"epochs": 0}, r"epochs=0 must be above 0"),
  "no log": ({"log_every": 0}, r"log_every=0 must be at least 1"),
  "one checkpoint": ({"checkpoint__keep": 1}, r"checkpoint_keep=1 must be"),
  "keys that are not there": (
    {"method__prompt_key": False, "method__transfer_keys": True},
    r"prompt_key=False has none",
  ),
  "unknown dtype": ({"model__dtype": "bf16"}, r"'bf16'.*bfloat16"),
  "unknown method": ({"method__name": "l2q"}, r"method 'l2q'.*mean 'l2p'"),
  "unknown model": ({"model__name": "vti"}, r"model 'vti'.*mean 'vit'"),
  "unknown variant": (
    {"model__variant": "ViT-B16"},
    r"variant 'ViT-B16'.*ViT-B_16",
  ),
  "unknown data set": (
    {"dataset__name": "cifar100O"},
    r"dataset 'cifar100O'.*mean 'cifar100'",
  ),
  "unknown scenario": (
    {"scenario__name": "class_incremetal"},
    r"scenario 'class_incremetal'.*mean 'class_incremental'",
  ),
  "unknown optimizer": (
    {"optimizer__head__name": "adm"},
    r"optimizer 'adm'.*mean 'adam'",
  ),
  "unknown schedule": (
    {"optimizer__head__schedule": "cosin"},
    r"schedule 'cosin'.*mean 'cosine'",
  ),
  "unknown problem": (
    {"problem__name": "classificaton"},
    r"problem 'classificaton'.*mean 'classification'",
  ),
  "unknown option of a method": (
    {"method__topk": 2},
    r"'topk' of the method 'l2p'.*mean 'top_k'",
  ),
  "unknown option of a data set": (
    {"dataset__perclass": 2},
    r"'perclass' of the dataset 'synthetic'.*mean 'per_class'",
  ),
  "unknown option of an optimizer": (
    {"optimizer__head__beta1": 0.9},
    r"'beta1' of the optimizer 'adam'",
  ),
  "group without a rate": (
    {"optimizer__head": {"name": "adam"}},
    r"settings .*'adam'.* need an 'lr'",
  ),
  "holdout of everything": ({"holdout": 1.0}, r"between 0 and 1"),
  "unknown feature for queries": ({"method__query": "clss"}, r"query='clss'"),
}


@pytest.mark.parametrize(("changes", "message"), CASES.values(), ids=CASES)
def test_bad_setting_is_named(tmp_path, changes, message):
  with pytest.raises(ValueError, match=f"(?s){message}"):
    main.execute(tiny(**changes), tmp_path)


def test_weights_of_another_width_are_listed(tmp_path):
  wide = tiny(model__variant="small_images")
  model = main.build_method(wide, 6, 3).model
  params, _ = main.initial_params(wide, model)
  path = tmp_path / "wide.npz"
  pretrained.save(path, jax.device_get(params))
  with pytest.raises(ValueError, match=r"cls.*\(1, 1, 64\).*\(1, 1, 16\)"):
    main.execute(tiny(init_checkpoint=str(path)), tmp_path / "run")


def test_missing_weights_are_named(tmp_path):
  config = tiny(init_checkpoint=str(tmp_path / "nowhere.npz"))
  with pytest.raises(FileNotFoundError, match="nowhere.npz"):
    main.execute(config, tmp_path)


def test_missing_folder_is_named(tmp_path):
  config = tiny(dataset={"name": "folder", "root": str(tmp_path / "none")})
  with pytest.raises(FileNotFoundError, match="none/train.*CLASS"):
    main.execute(config, tmp_path)


def test_missing_file_is_named(tmp_path):
  config = cifar10_deit_l2p.get_config(f"data={tmp_path}")
  with pytest.raises(FileNotFoundError, match="cifar10_6k.npz"):
    main.execute(config, tmp_path)


def test_data_set_that_is_not_prepared_is_explained(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  config = tiny(dataset={"name": "cifar100"})
  with pytest.raises(
    FileNotFoundError, match="tfds build cifar100 --data_dir="
  ):
    main.execute(config, tmp_path)


def test_workdir_of_a_mistake_takes_the_corrected_config(tmp_path, monkeypatch):
  for changes in ({"method__top_k": 11}, {"method__vote_group": 3}):
    with pytest.raises(ValueError):
      main.execute(tiny(**changes), tmp_path)
  monkeypatch.undo()
  assert main.execute(tiny(), tmp_path)["finished"]
