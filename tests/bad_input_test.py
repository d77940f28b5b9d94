"""What a user gets wrong is said in one line, before the first step."""

import jax
import lora_toy
import pytest
from toy import tiny
from walks import untrained

import main
from configs import cifar10_deit_l2p
from configs import common
from libml.train import weights
from models import pretrained

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
    r"8.*16.*eval='center",
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
    {"optimizer__head__warmup_epochs": 2.0},
    r"warmup_epochs=2.0 .*below the 2 epochs",
  ),
  "settings of no group": (
    {"optimizer__groups": (("prompt", "prompt_pool/.*"), ("head", "head/.*"))},
    r"settings for 'backbone', which is no parameter group",
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
  "unknown method": ({"method__name": "l2pp"}, r"method 'l2pp'.*mean 'l2p'"),
  "unknown model": ({"model__name": "vti"}, r"model 'vti'.*mean 'vit'"),
  "no device along an axis": (
    {"mesh__model": 0},
    r"A mesh of data=-1 x model=0 does not fit 2 devices",
  ),
  "settings of a group": (
    {"optimizer__backbone": 3},
    r"optimizer.backbone=3 must be a dict of settings, or None to freeze",
  ),
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
    "'head' has no learning rate; set optimizer.head.lr",
  ),
  "negative clipping": ({"optimizer__clip_norm": -1.0}, r"clip_norm=-1.0 must"),
  "clipping at NaN": (
    {"optimizer__clip_norm": float("nan")},
    r"clip_norm=nan must be above 0",
  ),
  "negative rate": (
    {"optimizer__head__lr": -0.1},
    r"optimizer.head.lr=-0.1 must be a finite number of at least 0",
  ),
  "infinite rate": (
    {"optimizer__head__lr": float("inf")},
    r"optimizer.head.lr=inf must be a finite number",
  ),
  "negative decay": (
    {"optimizer__l2": -1.0},
    r"optimizer.l2=-1.0 must be a finite number",
  ),
  "decay of moments": (
    {"optimizer__head__b1": 1.0},
    r"optimizer.head.b1=1.0 must be below 1",
  ),
  "rates for a batch of none": (
    {"optimizer__lr_batch_size": -1},
    r"lr_batch_size=-1 must be at least 1",
  ),
  "groups as a word": (
    {"optimizer__groups": ("head",)},
    r"optimizer.groups=\('head',\) must be pairs \(name, pattern\), such as",
  ),
  "group of a broken pattern": (
    {"optimizer__groups": (("head", "(head"), ("backbone", ".*"))},
    r"pattern '\(head' of 'head' must be a regular expression: missing \)",
  ),
  "a pool of terabytes": (
    {"method__pool_size": 10**12},
    r"do not fit into memory \(RESOURCE_EXHAUSTED.*smaller options of",
  ),
  "holdout of everything": ({"holdout": 1.0}, r"above 0 and below 1"),
  "a task of one class": (
    {"scenario__num_tasks": 6},
    r"Each stage learns one class, .*fewer tasks .*mask_classes=False",
  ),
  "a batch of more than all images": (
    {"batch_size": 10**9, "method__vote_group": 0},
    r"batch_size=1000000000 is larger than the 96 images of the largest stage",
  ),
  "unknown feature for queries": ({"method__query": "clss"}, r"query='clss'"),
}


@pytest.mark.parametrize(("changes", "message"), CASES.values(), ids=CASES)
def test_bad_setting_is_named(tmp_path, changes, message):
  with pytest.raises(ValueError, match=f"(?s){message}"):
    untrained(tiny(**changes), tmp_path)


LAYERS_OF_A_VIT = (
  r"Transformer/encoderblock_\*/MlpBlock_0/Dense_0, .*/Dense_1, .*/key, "
  r".*/out, .*/query, .*/value"
)
ADAPTERS = {"layers": r".*/(key|value)", "rank": 2, "alpha": None}
LORA_CASES = {
  "rank 0": ({"model__lora__rank": 0}, r"rank=0 .*at least 1.*model.lora=None"),
  "negative rank": ({"model__lora__rank": -2}, r"rank=-2 .*at least 1"),
  "rank above the width": (
    {"model__lora__rank": 17},
    r"lora.rank=17 .*encoderblock_0/.*/key, which maps 16 .* to 16; .* 1 to 16",
  ),
  "adapters of nothing": (
    {"model__lora__layers": r".*/(keys|values)"},
    r"lora.layers='\.\*/\(keys\|values\)' matches no .*layer; the layers are "
    + LAYERS_OF_A_VIT,
  ),
  "broken expression": (
    {"model__lora__layers": "(key"},
    r"lora.layers='\(key' must be a regular expression .*: missing \)",
  ),
  "unknown option of adapters": (
    {"model__lora": {"rnak": 2, "layers": ".*/key"}},
    r"model.lora has .*\['layers', 'rnak'\]; .*'alpha', 'layers', 'rank'",
  ),
  "option too many of adapters": (
    {"model__lora": {**ADAPTERS, "slope": 1.0}},
    r"model.lora has .*'slope'\]; it takes \['alpha', 'layers', 'rank'\]",
  ),
  "no adapters": ({"model__lora": None}, r"model has none; set model.lora to"),
  "adapters of the MLP": (
    {"model__lora__layers": r".*/(key|Dense_0)"},
    r"encoderblock_0/MlpBlock_0/Dense_0/lora_a .*match only query, key, value",
  ),
  "threshold 0": (
    {"method__threshold": 0.0},
    r"threshold=0.0 .*above 0 and at",
  ),
  "threshold 1.5": ({"method__threshold": 1.5}, r"threshold=1.5 .*at most 1"),
  "threshold -1": ({"method__threshold": -1.0}, r"threshold=-1.0 .*above 0"),
  "negative triplet": ({"method__triplet": -0.1}, r"triplet=-0.1 .*at least 0"),
  "negative margin": ({"method__margin": -1.0}, r"margin=-1.0 .*at least 0"),
  "unknown start of B": (
    {"method__lora_b": "zero"},
    r"lora_b='zero' must be 'zeros' or 'sparse'",
  ),
  "no first epoch": (
    {"method__first_epochs": 0},
    r"first_epochs=0 must be 1 to epochs=2, .* or None",
  ),
  "more first epochs than the schedule has": (
    {"method__first_epochs": 3},
    r"first_epochs=3 must be 1 to epochs=2, .* or None",
  ),
  "margin that is no number": ({"method__margin": float("nan")}, r"margin=nan"),
  "scale 0": ({"model__lora__alpha": 0.0}, r"lora.alpha=0.0 .*above 0"),
  "adapters under another name": (
    {
      "method": {"name": "finetune"},
      "optimizer__groups": (
        ("lora", r".*/lora[ab]"),
        ("head", r"head/.*"),
        ("backbone", r".*"),
      ),
    },
    r"group 'lora', .*; similar names are .*key/lora_a' \(in group 'backbone'",
  ),
  "adapters that nobody trains": (
    {"method": {"name": "finetune"}, "optimizer__lora": None},
    r"the optimizer trains none; put a group .*lora_\[ab\]",
  ),
  "a trained kernel beside an adapter": (
    {"optimizer__backbone": common.adam(0.1)},
    r"must train .*key/lora_a and freeze .*key/kernel for this .*; put a group",
  ),
  "only B trained": (
    {
      "optimizer__groups": (
        ("lora", r".*/lora_b"),
        ("head", r"head/.*"),
        ("backbone", r".*"),
      )
    },
    r"must train .*key/lora_a and freeze",
  ),
  "no projection": (
    {"optimizer__lora__project": None},
    r"projects the updates of 8 parameters, .*group 'lora'.* no project",
  ),
  "another group's projection": (
    {"optimizer__lora__project": None, "optimizer__head__project": "update"},
    r"projects the updates of 8 parameters, .*group 'lora'.* no project",
  ),
  "projection on nothing": (
    {"method": {"name": "finetune"}},
    r"groups \['lora'\] have a project, but the method projects nothing",
  ),
  "unknown projection": (
    {"optimizer__lora__project": "updates"},
    r"project='updates' must be one of .*'update', 'gradient'",
  ),
  "class that comes back": (
    {
      "scenario": {"name": "domain_incremental"},
      "dataset": {
        "name": "synthetic_sessions",
        "num_classes": 6,
        "per_class": 16,
        "size": 8,
        "sessions": 3,
      },
    },
    r"Stage 2 learns classes \[0, .*\] again, .*class_incremental",
  ),
  "rehearsal": (
    {"rehearsal__per_class": 2},
    r"LoraSub takes no exemplars; set rehearsal.per_class=0",
  ),
}


@pytest.mark.parametrize(
  ("changes", "message"), LORA_CASES.values(), ids=LORA_CASES
)
def test_bad_setting_of_lora_is_named(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message) as error:
    untrained(lora_toy.tiny(**changes), tmp_path)
  assert "\n" not in str(error.value)


def test_weights_of_another_width_are_listed(tmp_path):
  wide = tiny(model__variant="small_images")
  model = main.build_method(wide, 6, 3).model
  params, _ = weights.first(wide, model)
  path = tmp_path / "wide.npz"
  pretrained.save(path, jax.device_get(params))
  with pytest.raises(
    ValueError,
    match="wide.npz is a ViT of width 64, .* of 2 pixels at 8 pixels, and this "
    "config asks for ViT of width 16, .*: use a file of this model",
  ) as error:
    untrained(tiny(init_checkpoint=str(path)), tmp_path / "run")

  assert "\n" not in str(error.value)


def test_missing_weights_are_named(tmp_path):
  config = tiny(init_checkpoint=str(tmp_path / "nowhere.npz"))
  with pytest.raises(FileNotFoundError, match="nowhere.npz"):
    untrained(config, tmp_path)


def test_missing_folder_is_named(tmp_path):
  config = tiny(dataset={"name": "folder", "root": str(tmp_path / "none")})
  with pytest.raises(FileNotFoundError, match="none/train.*CLASS"):
    untrained(config, tmp_path)


def test_missing_file_is_named(tmp_path):
  config = cifar10_deit_l2p.get_config(f"data={tmp_path}")
  with pytest.raises(FileNotFoundError, match="cifar10_6k.npz"):
    untrained(config, tmp_path)


def test_data_set_that_is_not_prepared_is_explained(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  config = tiny(dataset={"name": "cifar100"})
  with pytest.raises(
    FileNotFoundError, match="tfds build cifar100 --data_dir="
  ):
    untrained(config, tmp_path)


def test_workdir_of_a_mistake_takes_the_corrected_config(tmp_path):
  for changes in ({"method__top_k": 11}, {"method__vote_group": 3}):
    with pytest.raises(ValueError):
      untrained(tiny(**changes), tmp_path)
  assert main.execute(tiny(), tmp_path)["finished"]
