"""What a user gets wrong with the baselines is said before the first step."""

import baselines_toy
import numpy as np
import pytest
import walks

import main
from configs import common
from configs import digits_baselines
from libml import trees
from libml.train import weights

WEIGHTS = common.adam(1e-4)
CASES = {
  "a share of no weights": (
    "ewc",
    {"method__saliency": 0.0},
    r"method.saliency=0.0 must be above 0 and at most 1, or None",
  ),
  "a share of more than all weights": (
    "salun",
    {"method__saliency": 1.5},
    r"method.saliency=1.5 must be above 0 and at most 1",
  ),
  "unknown relabelling": (
    "lwf",
    {"method__relabel": "any"},
    r"method.relabel='any' must be one of \['kept', 'shifted'\]",
  ),
  "unknown images to weigh on": (
    "ewc",
    {"method__weigh_on": "all"},
    r"method.weigh_on='all' must be 'retain' or 'retain_all'",
  ),
  "images to weigh on that the scenario lacks": (
    "mas",
    {"method__weigh_on": "retain_all"},
    r"weigh_on='retain_all' .* stage 2 has .* scenario.whole_retain=True",
  ),
  "more max rounds than rounds": (
    "scrub",
    {"method__max_rounds": 3},
    r"method.max_rounds=3 must be 0 to min_rounds=2",
  ),
  "negative smoothing": (
    "scrub_s",
    {"method__smoothing": -0.1},
    r"method.smoothing=-0.1 must be a finite number, 0 or more",
  ),
  "a weight that is no share": (
    "neg_grad",
    {"method__weight": 1.5},
    r"method.weight=1.5 must be 0 to 1",
  ),
  "dampening that selects everything": (
    "ssd",
    {"method__select": 0.0},
    r"method.select=0.0 must be a finite number, above 0",
  ),
  "a network that cannot be cut": (
    "lirf",
    {},
    r"LIRF cuts the network .* two blocks .* ViT has depth=1. Use a deeper",
  ),
  "training above the cut": (
    "lirf",
    {"model__depth": 2, "optimizer__backbone": WEIGHTS},
    r"trains the lower half of the network only, but the optimizer trains .*"
    r"'Transformer/encode.*; put a group with the pattern .* first",
  ),
  "a retrained network with frozen weights": (
    "retrain",
    {"optimizer__vectors": None},
    r"Retrain draws and trains all weights, but the optimizer freezes .* and "
    r"1\d more parameters; give every parameter group .* settings",
  ),
  "a batch larger than what goes": (
    "der",
    {"batch_size": 16},
    r"batch_size=16 is larger than the 8 images of 'forget' in stage 1; set",
  ),
}


def refuse(config, workdir, message):
  with pytest.raises(ValueError, match=message) as error:
    walks.untrained(config, workdir)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("method", "changes", "message"), CASES.values(), ids=CASES
)
def test_bad_setting_is_named(tmp_path, method, changes, message):
  refuse(baselines_toy.tiny(method, **changes), tmp_path, message)


@pytest.mark.parametrize("method", ["scrub", "bad_teacher"])
def test_teacher_of_other_classes_is_named(tmp_path, method):
  config = baselines_toy.tiny(method)
  model = main.build_method(config, num_classes=5, num_stages=3).model
  params, _ = weights.first(config, model)
  np.savez(tmp_path / "five.npz", **trees.flatten(params))
  config.init_checkpoint = str(tmp_path / "five.npz")
  with pytest.raises(ValueError) as error:
    walks.untrained(config, tmp_path / "run")
  assert "head/kernel, file (16, 5), model (16, 6)" in str(error.value)
  assert 'init_head="fresh" drops the file\'s head' in str(error.value)


def test_method_without_a_preset_is_named():
  with pytest.raises(ValueError, match=r"method='ssd2' must be one of \['bad_"):
    digits_baselines.get_config("smoke,method=ssd2")


def test_method_that_learns_is_named(tmp_path):
  config = baselines_toy.tiny("finetune_retain")
  config.method = {
    "name": "finetune", "restart_optimizer": True, "mask_classes": False,
  }  # fmt: skip
  refuse(config, tmp_path, "is to forget, and Finetune can only learn; take")
