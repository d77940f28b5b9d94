"""Configs of forgetting: the authors' values, and what arguments do."""

import functools
import importlib

import jax
import numpy as np
import pytest

import main
from configs import casia100
from libml import trees


def load(name, arg=None):
  return importlib.import_module(f"configs.{name}").get_config(arg)


def values(config, keys):
  return {
    key: functools.reduce(lambda part, word: part[word], key.split("."), config)
    for key in keys
  }


# The authors' values (spec 2 and 3.5).
PRETRAIN = {
  "epochs": 1200,
  "scenario.num_tasks": 1,
  "model.image_size": 112,
  "model.dropout": 0.1,
  "model.lora": None,
  "method.mask_classes": False,
  "optimizer.clip_norm": float("inf"),
  "optimizer.lr_batch_size": None,
  "optimizer.l2": 0.0,
  "optimizer.vectors.weight_decay": 0.0,
  **{
    f"optimizer.{group}.{option}": value
    for group in ("vectors", "head", "backbone")
    for option, value in (
      ("name", "adam"),
      ("schedule", "timm_cosine"),
      ("warmup_epochs", 10.0),
    )
  },
  "optimizer.head.weight_decay": 0.05,
  "optimizer.backbone.weight_decay": 0.05,
}
FACES = {
  "preprocess.train": "none",
  "preprocess.eval": "native",
  "preprocess.mean": None,
  "preprocess.std": None,
  "mixing.mixup": 0.0,
  "model.name": "face_vit",
  "model.variant": "P8S8_6",
  "model.head": "cosface",
}


@pytest.mark.parametrize(
  ("arg", "model", "batch", "lr", "min_lr"),
  [
    (None, {}, 960, 6e-4, 2e-5),
    ("depth=12", {"model.variant": "P8S8_12"}, 480, 3e-4, 1e-5),
    ("depth=18", {"model.variant": "P8S8_18"}, 960, 6e-4, 2e-5),
    ("head=softmax", {"model.head": "softmax"}, 1920, 1.2e-3, 2e-5),
    ("head=sface", {"model.head": "sface"}, 960, 6e-4, 2e-5),
  ],
)
def test_pretraining_has_the_authors_values(arg, model, batch, lr, min_lr):
  config = load("casia100_pretrain", arg)
  expected = {**PRETRAIN, **FACES, **model, "batch_size": batch}
  for group in ("vectors", "head", "backbone"):
    expected[f"optimizer.{group}.lr"] = lr
    expected[f"optimizer.{group}.min_lr"] = min_lr
  assert values(config, expected) == expected


COMMON = {
  "epochs": 100,
  "batch_size": 48,
  "init_head": "keep",
  "preprocess.train": "none",
  "scenario.name": "forgetting",
  "scenario.order": casia100.ORDER,
  "scenario.requests": None,
  "scenario.retain": None,
  "scenario.num_requests": 4,
  "scenario.classes_per_request": 20,
  "scenario.missing": 0,
  "scenario.ratio": 0.1,
  "scenario.shots": None,
  "scenario.redraw": True,
  "model.lora.layers": r".*/MlpBlock_0/Dense_[01]",
  "model.lora.rank": 8,
  "model.lora.alpha": 1.0,
  "method.name": "gs_lora",
  "method.bound": 105.0,
  "method.beta": (0.2, 0.25, 0.25, 0.25),
  "method.beta_decay_epoch": None,
  "method.alpha": 1e-4,
  "method.alpha_epoch": 0,
  "method.grouping": "block",
  "method.subgradient": True,
  "method.restart_slope": pytest.approx(50**0.5),
  "method.restart_optimizer": True,
  "method.average_epoch": None,
  "method.average_decay": 0.9,
  "optimizer.lora.name": "adam",
  "optimizer.lora.lr": 1e-2,
  "optimizer.lora.min_lr": 1e-5,
  "optimizer.lora.schedule": "timm_cosine",
  "optimizer.lora.warmup_epochs": 0.0,
  "optimizer.lora.weight_decay": 0.05,
  "optimizer.head": None,
  "optimizer.backbone": None,
  "optimizer.clip_norm": float("inf"),
  "optimizer.lr_batch_size": None,
}
PLUS = {
  "method.name": "gs_lora_plus",
  "method.beta": (0.2, 0.25, 0.25, 0.2),
  "method.proto_forget": (0.01,) * 4,
  "method.proto_retain": (0.0,) * 4,
  "method.proto_bound": 18.0,
  "method.proto_distance": "kl",
  "method.proto_source": "start",
  "method.average_epoch": 30,
}
SHOTS = {
  "batch_size": 4,
  "scenario.shots": 4,
  "method.beta": (0.3, 0.4, 0.28, 0.2),
}
MISSING = {
  "scenario.missing": 5,
  "scenario.missing_from": "start",
  "method.beta": (0.14, 0.14, 0.2, 0.15),
  "method.alpha": 0.015,
  "method.alpha_epoch": 30,
}
SINGLE = {
  "scenario.num_requests": 1,
  "scenario.classes_per_request": 10,
  "method.bound": 110.0,
  "method.beta": (0.15,),
  "method.alpha": 0.01,
  "method.alpha_epoch": 20,
}
SINGLE_PLUS = {
  **SINGLE,
  "method.name": "gs_lora_plus",
  "method.beta": (0.05,),
  "method.proto_forget": (0.005,),
  "method.proto_retain": (0.0,),
  "method.proto_bound": 18.0,
  "method.average_epoch": 50,
}
IMAGENET = {
  "scenario.ratio": 0.05,
  "preprocess.eval": "center_crop",
  "preprocess.resize": 256,
  "preprocess.antialias": True,
  "preprocess.mean": (0.485, 0.456, 0.406),
  "preprocess.std": (0.229, 0.224, 0.225),
  "model.name": "vit",
  "model.variant": "ViT-B_16",
  "model.image_size": 224,
  "model.gelu": "erf",
  "model.classifier": "token",
  "model.block_epsilon": 1e-6,
}
RELEASED = {
  "casia100_gs_lora": FACES,
  "casia100_gs_lora:plus": {**FACES, **PLUS},
  "casia100_gs_lora:shots=4": {**FACES, **SHOTS},
  "casia100_gs_lora:plus,shots=4": {
    **FACES,
    **PLUS,
    **SHOTS,
    "method.proto_forget": (0.015, 0.06, 0.025, 0.012),
    "method.proto_bound": 50.0,
  },
  "casia100_gs_lora:missing": MISSING,
  "casia100_gs_lora:missing,plus": {
    **PLUS,
    **MISSING,
    "method.proto_forget": (3e-4,) * 4,
    "method.average_epoch": None,
  },
  "casia100_gs_lora:single=10": {**FACES, **SINGLE},
  "casia100_gs_lora:single=90": {**SINGLE, "scenario.classes_per_request": 90},
  "casia100_gs_lora:single=10,plus": {**FACES, **SINGLE_PLUS},
  "casia100_gs_lora:single=10,shots=2,plus": {
    **SINGLE_PLUS,
    "batch_size": 4,
    "scenario.shots": 2,
    "method.beta": (0.15,),
    "method.proto_forget": (0.5,),
  },
  "casia100_gs_lora:single=10,shots=4": {
    **SINGLE,
    "batch_size": 4,
    "scenario.shots": 4,
  },
  "casia100_gs_lora:single=10,depth=12,plus": {
    **SINGLE_PLUS,
    "model.variant": "P8S8_12",
    "method.beta": (0.03,),
    "method.proto_forget": (0.001,),
    "method.proto_retain": (0.001,),
  },
  "casia100_gs_lora:single=10,depth=18": {
    **SINGLE,
    "model.variant": "P8S8_18",
    "method.alpha": 0.015,
  },
  "casia100_gs_lora:single=10,attention": {
    **SINGLE,
    "model.lora.layers": r".*/(query|key|value)",
    "method.alpha_epoch": 0,
  },
  "imagenet100_gs_lora": IMAGENET,
  "imagenet100_gs_lora:plus": {
    **IMAGENET,
    **PLUS,
    "method.beta": (0.2, 0.25, 0.25, 0.25),
    "method.proto_forget": (0.05,) * 4,
  },
}
# What is ours by default, with its reasons in spec 14.
OURS = {
  "method.subgradient": False,
  "method.restart_slope": pytest.approx(5**0.5),
  "method.average_epoch": None,
  "optimizer.lora.name": "proximal_adam",
  "scenario.redraw": False,
}
WARM = {"method.alpha": 0.01, "method.alpha_epoch": 20}


def with_arg(name, arg):
  name, _, args = name.partition(":")
  return load(name, ",".join(filter(None, [args, arg])))


@pytest.mark.parametrize("name", RELEASED)
def test_parity_has_the_authors_values(name):
  expected = {**COMMON, **RELEASED[name]}
  assert values(with_arg(name, "parity"), expected) == expected


@pytest.mark.parametrize("name", RELEASED)
def test_default_differs_only_where_ours_is_named(name):
  expected = {**COMMON, **RELEASED[name], **OURS}
  if expected["method.alpha_epoch"] == 0:
    expected |= WARM
  assert values(with_arg(name, None), expected) == expected
  theirs = with_arg(name, "parity").to_dict()
  ours = with_arg(name, None).to_dict()
  changed = {
    f"{part}.{key}"
    for part in ("scenario", "method", "model")
    for key in ours[part]
    if ours[part][key] != theirs[part][key]
  }
  assert changed <= {*OURS, *WARM}
  for part in ("dataset", "preprocess", "batch_size", "epochs", "holdout"):
    assert ours[part] == theirs[part]


def test_missing_people_are_those_of_the_authors():
  found = {
    arg: load("casia100_gs_lora", arg).scenario.missing_from
    for arg in ("missing", "single=10")
  }
  assert found == {"missing": "start", "single=10": "end"}


@pytest.mark.parametrize(
  "name", ["casia100_pretrain", "casia100_gs_lora", "imagenet100_gs_lora"]
)
def test_tuning_tests_on_training_images(name):
  assert load(name).holdout == 0.0
  assert load(name, "tune").holdout == 0.2


@pytest.mark.parametrize(
  ("name", "arg", "message"),
  [
    ("casia100_pretrain", "depth=7", r"depth=7 must be one of \[6, 12, 18\]"),
    ("casia100_pretrain", "head=cos", "head='cos' one of .*'cosface'"),
    ("casia100_gs_lora", "single=20", "single=20 must be 5, 10, 50 or 90"),
    ("casia100_gs_lora", "shots=4,missing", "continual,shots,missing together"),
    ("casia100_gs_lora", "single=5,attention,plus", "attention with plus"),
    ("casia100_gs_lora", "depth=12", "has continual,depth12 together; the"),
    ("casia100_gs_lora", "singel=5", "Did you mean 'single'"),
  ],
)  # fmt: skip
def test_bad_arguments_are_named(name, arg, message):
  with pytest.raises(ValueError, match=message):
    load(name, arg)


def test_own_classes_to_forget_are_one_request():
  assert load("custom_gs_lora", "forget=cat+dog").scenario.requests == (
    ("cat", "dog"),
  )
  # A run of none is refused: no class is forgotten by default.
  assert load("custom_gs_lora").scenario.requests == ()


# From a config to objects.


def build(config, num_classes, requests):
  method = main.build_method(config, num_classes, num_stages=requests)
  return method, main.build_optimizer(config, method)


@pytest.mark.parametrize("name", RELEASED)
def test_options_are_those_of_the_classes(name):
  for arg in (None, "smoke", "parity", "parity,smoke"):
    config = with_arg(name, arg)
    requests = config.scenario.num_requests
    method, _ = build(config, 100, requests)
    for values in ("beta", "proto_forget", "proto_retain"):
      assert len(getattr(method, values, method.beta)) >= requests


# Parameters that are trained, and that are not (spec 1.1, 1.3, 1.5).
@pytest.mark.parametrize(
  ("name", "trained", "frozen"),
  [
    ("imagenet100_gs_lora", 737_280, 85_875_556),
    ("casia100_gs_lora", 245_760, 19_157_504),
    ("casia100_gs_lora:single=10,attention", 147_456, 19_157_504),
    ("casia100_gs_lora:single=10,depth=18", 737_280, 56_967_680),
    ("casia100_pretrain", 19_157_504, 0),
    ("casia100_pretrain:depth=12", 38_062_592, 0),
  ],
)
def test_number_of_parameters(name, trained, frozen):
  config = with_arg(name, None)
  method, optimizer = build(config, 100, 4)
  size = config.model.image_size
  inputs = {"image": jax.ShapeDtypeStruct((1, size, size, 3), np.float32)}
  init = functools.partial(method.model.init, jax.random.key(0))
  params = jax.eval_shape(init, inputs)["params"]
  found = {True: 0, False: 0}
  trainable = optimizer.groups.trainable(params)
  for leaf, on in zip(
    jax.tree.leaves(params), jax.tree.leaves(trainable), strict=True
  ):
    found[on] += leaf.size
  assert found == {True: trained, False: frozen}


@pytest.mark.parametrize("head", ["cosface", "softmax"])
def test_decay_of_pretraining_is_of_matrices_alone(head):
  config = load("casia100_pretrain", f"head={head}")
  method, optimizer = build(config, 100, 1)
  inputs = {"image": jax.ShapeDtypeStruct((1, 112, 112, 3), np.float32)}
  init = functools.partial(method.model.init, jax.random.key(0))
  params = jax.eval_shape(init, inputs)["params"]
  labels = trees.flatten(optimizer.groups.labels(params))
  for name, leaf in trees.flatten(params).items():
    assert (labels[name] == "vectors") == (leaf.ndim == 1), name
