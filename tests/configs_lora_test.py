"""LoRA-Sub-DRS's configs: the released values, and what their arguments do."""

import functools
import importlib
import inspect

import pytest

from libml import datasets
from libml import registry
from libml.datasets import tfds_rows


def load(name, arg=None):
  return importlib.import_module(f"configs.{name}").get_config(arg)


# Spec 7.1 to 7.3.
COMMON = {
  "batch_size": 128,
  "scenario.name": "class_incremental",
  "scenario.order_seed": 1993,
  "model.variant": "ViT-B_16",
  "model.image_size": 224,
  "model.gelu": "erf",
  "model.classifier": "token",
  "model.block_epsilon": 1e-6,
  "model.lora.layers": r".*/(key|value)",
  "model.lora.rank": 10,
  "model.lora.alpha": None,
  "preprocess.train": "random_resized_crop",
  "preprocess.eval": "center_crop",
  "preprocess.area": (0.08, 1.0),
  "preprocess.aspect": (3 / 4, 4 / 3),
  "preprocess.flip": 0.5,
  "preprocess.mean": None,
  "preprocess.color_jitter": None,
  "preprocess.grayscale": 0.0,
  "method.threshold": 0.99,
  "method.first_epochs": None,
  "optimizer.lora.lr": 5e-4,
  "optimizer.lora.weight_decay": 0.0,
  "optimizer.head.weight_decay": 0.0,
  "optimizer.lr_batch_size": None,
  "optimizer.backbone": None,
}
IMAGENET_R = {
  "dataset.name": "imagenet_r",
  "preprocess.resize": 256,
  "preprocess.antialias": True,
  "epochs": 50,
  "method.first_epochs": 40,
  "method.triplet": 0.2,
  "method.margin": 2.0,
  "optimizer.head.lr": 5e-4,
}
CIFAR100 = {
  "dataset.name": "cifar100",
  "preprocess.resize": 224,
  "epochs": 20,
  "method.triplet": 0.05,
  "method.margin": 1.0,
  "optimizer.head.lr": 2e-3,
}
RELEASED = {
  "cifar100_lora_sub": {**CIFAR100, "scenario.num_tasks": 10},
  "cifar100_lora_sub:tasks=20": {**CIFAR100, "scenario.num_tasks": 20},
  "cifar100_lora_sub:order=natural": {"scenario.order_seed": None},
  "cifar100_lora_sub:order=7": {"scenario.order_seed": 7},
  "imr_lora_sub": {**IMAGENET_R, "scenario.num_tasks": 10},
  "imr_lora_sub:tasks=20": {**IMAGENET_R, "scenario.num_tasks": 20},
  "imr_lora_sub:tasks=5": {**IMAGENET_R, "scenario.num_tasks": 5},
  "imr_lora_sub:tune": {**IMAGENET_R, "dataset.name": "imagenet_r_tuning"},
  "domainnet_lora_sub": {
    "dataset.name": "domainnet_classes",
    "scenario.num_tasks": 5,
    "scenario.order_seed": 294,
    "model.lora.rank": 40,
    "preprocess.resize": 256,
    "preprocess.antialias": True,
    "preprocess.area": (0.7, 1.0),
    "preprocess.color_jitter": (0.3, 0.3, 0.3, 0.3),
    "preprocess.grayscale": 0.1,
    "epochs": 5,
    "method.triplet": 0.1,
    "method.margin": 2.0,
    "optimizer.head.lr": 1e-3,
  },
}


@pytest.mark.parametrize("name", RELEASED)
def test_values_are_the_released_ones(name):
  config, expected = load(*name.split(":")), {**COMMON, **RELEASED[name]}
  found = {
    key: functools.reduce(lambda part, word: part[word], key.split("."), config)
    for key in expected
  }
  assert found == expected


@pytest.mark.parametrize("name", ["digits", "cifar10_deit"])
def test_stream_is_that_of_l2p(name):
  ours, theirs = (load(f"{name}_{method}") for method in ("lora_sub", "l2p"))
  for part in ("scenario", "dataset", "preprocess", "batch_size", "pretrain"):
    assert ours[part] == theirs[part]


LISTS = "train_list=a.yaml,test_list=b.yaml"


@pytest.mark.parametrize(
  ("name", "arg", "expected"),
  [
    ("imr_lora_sub", LISTS, {"train_split": "test"}),
    ("domainnet_lora_sub", None, {"data_dir": None}),
    ("domainnet_lora_sub", f"folder=dn,{LISTS}", {"root": "dn"}),
  ],
)
def test_images_are_those_of_the_arguments(name, arg, expected):
  options = registry.plain(load(name, arg).dataset)
  row = datasets.DATASETS[options.pop("name")]
  inspect.signature(row).bind(**options)  # raises for an unknown option
  if arg:
    expected = {**expected, "train_list": "a.yaml", "test_list": "b.yaml"}
  if name == "domainnet_lora_sub":
    assert len(options["domains"]) == 5
    assert set(options["domains"]) == set(tfds_rows.DOMAINS) - {"quickdraw"}
  assert {key: options[key] for key in expected} == expected


@pytest.mark.parametrize(
  ("name", "arg", "message"),
  [
    ("cifar100_lora_sub", "order=naturl", "order='naturl' must be 'natural'"),
    ("imr_lora_sub", f"tune,{LISTS}", "imr_lora_sub takes ':tune' or lists"),
    ("domainnet_lora_sub", "folder=dn", "folder='dn', train_.* given together"),
    ("domainnet_lora_sub", LISTS, "folder='', train_list=.* given together"),
  ],
)  # fmt: skip
def test_bad_arguments_are_named(name, arg, message):
  with pytest.raises(ValueError, match=message):
    load(name, arg)
