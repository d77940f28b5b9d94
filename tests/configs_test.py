"""Every config loads, and fits the classes that it names."""

import functools
import importlib
import inspect
import pathlib
import re

import jax
import pytest

import main
from configs import base
from configs import baselines
from configs import common
from libml import datasets
from libml import registry
from libml import trees
from libml.images import preprocess
from methods import METHODS
from models import described

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = [path.stem for path in sorted((ROOT / "configs").glob("[a-z]*_*.py"))]


def load(name, arg=None):
  return importlib.import_module(f"configs.{name}").get_config(arg)


def settled(name, arg=None):
  """Returns a config; what its file of weights would say is as in base.py."""
  config = load(name, arg)
  for key in described.KEYS:
    if config.model.get(key, "") is None:
      config.model[key] = base.get_config().model[key]
  return config


def arguments(name):
  """Returns what a config's docstring says may stand after the colon."""
  text = importlib.import_module(f"configs.{name}").__doc__
  found = [None]
  for word in ("paper", "shipped", "tune", "plus", "measure"):
    if f'":{word}"' in text:
      found.append(word)
  found += re.findall(r'":((?:tasks|order)=\w+)"', text)
  if '":method="' in text:
    forgets = name.endswith("_baselines")
    methods = baselines.BASELINES if forgets else common.REFERENCES
    found += [f"method={method}" for method in methods]
  return found


CASES = [(name, arg) for name in NAMES for arg in arguments(name)]


def build(config, num_classes):
  """Returns the method and the optimizer that a config describes."""
  method = main.build_method(config, num_classes, num_stages=10)
  return method, main.build_optimizer(config, method)


def shapes(config, num_classes):
  """Returns the shapes of a config's parameters, and which are trained."""
  method, optimizer = build(config, num_classes)
  init = functools.partial(method.model.init, jax.random.key(0))
  params = jax.eval_shape(
    lambda image: method.init_params(init(image)["params"], jax.random.key(0)),
    method.model.example_input(),
  )
  return params, optimizer.groups.trainable(params)


@pytest.mark.parametrize("shrunk", [False, True], ids=["full", "smoke"])
@pytest.mark.parametrize(("name", "arg"), CASES)
def test_options_are_those_of_the_classes(name, arg, shrunk):
  config = settled(
    name, ",".join(filter(None, [arg, "smoke" if shrunk else ""]))
  )
  build(config, 10)
  registry.build(
    {"preprocess": preprocess.Preprocess},
    "chain",
    "preprocess",
    **registry.plain(config.preprocess),
    size=config.model.image_size,
  )


@pytest.mark.parametrize("name", NAMES)
def test_smoke_trains_what_the_full_config_trains(name):
  def trained(config):
    _, trainable = shapes(config, 10)
    leaves = trees.flatten(trainable)
    # Depths differ; a whole kind of parameter is trained or not.
    return {re.sub(r"_\d+", "", leaf): on for leaf, on in leaves.items()}

  assert trained(settled(name)) == trained(load(name, "smoke"))


def test_every_method_has_a_config():
  assert {load(*case).method.name for case in CASES} >= METHODS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_names_are_their_files(name):
  if name.endswith("_reference"):  # named by the method
    assert load(name, "method=joint").name == "joint"
  elif name.endswith("_baselines"):
    assert load(name, "method=ewc").name == "ewc"
  elif name.endswith("_swap"):  # and by the order, which is in no column
    assert load(name).name.partition(":")[0] == name
    assert load(name, "order=fl").name.endswith("fl")
  else:
    assert load(name).name == name


# The released values (spec 1.1 and 1.2), a device's batch times 8 devices.
COMMON = {
  "epochs": 5,
  "batch_size": 192,
  "seed": 42,
  "holdout": 0.0,
  "model.variant": "ViT-B_16",
  "model.image_size": 224,
  "model.classifier": "token",
  "model.norm_pre_logits": False,
  "model.temperature": 1.0,
  "preprocess.resize": 256,
  "preprocess.mean": None,
  "optimizer.clip_norm": 1.0,
  "optimizer.lr_batch_size": 256,
  "optimizer.l2": 0.0,
  "optimizer.backbone": None,
  "optimizer.head.name": "adam",
  "optimizer.head.lr": 0.03,
  "optimizer.head.schedule": "constant",
  "optimizer.head.warmup_epochs": 0.0,
  "optimizer.prompt.name": "adam",
  "optimizer.prompt.lr": 0.03,
  "method.restart_optimizer": True,
  "method.mask_classes": True,
  "method.pool_size": 10,
  "method.e_layers": (2, 3, 4),
  "method.e_prefix": True,
  "method.length": 5,
  "method.top_k": 1,
  "method.g_layers": (0, 1),
  "method.g_prefix": True,
  "method.g_length": 5,
  "method.prompt_init": "uniform",
  "method.prompt_key": True,
  "method.key_init": "uniform",
  "method.key_loss": 1.0,
  "method.query": "cls",
  "method.prompt_mask": True,
  "method.transfer_prompts": True,
  "method.transfer_keys": False,
  "method.vote_group": 24,
}
TASKS = {
  "scenario.name": "class_incremental",
  "scenario.num_tasks": 10,
  "scenario.order_seed": None,
}
L2P = {
  "batch_size": 128,
  "model.classifier": "prompt",
  "method.e_layers": (0,),
  "method.e_prefix": False,
  "method.length": 10,
  "method.top_k": 4,
  "method.g_layers": (),
  "method.prompt_mask": False,
  "method.transfer_prompts": False,
  "method.vote_group": 16,
}
FIVE = ("cifar10", "mnist", "svhn_cropped", "not_mnist", "fashion_mnist")
ORIGINAL = {
  "cifar100_dualprompt": {**TASKS, "dataset.name": "cifar100"},
  "imr_dualprompt": {
    **TASKS,
    "dataset.name": "imagenet_r",
    "epochs": 50,
    "optimizer.head.lr": 0.005,
    "optimizer.prompt.lr": 0.005,
    "method.length": 20,
    "method.vote_group": 0,
  },
  "cifar100_l2p": {**TASKS, **L2P, "dataset.name": "cifar100"},
  "five_datasets_l2p": {
    **L2P,
    "scenario.name": "joined",
    "dataset.order": FIVE,
    **{f"dataset.{name}.name": name for name in FIVE},
    "method.pool_size": 20,
    "method.prompt_mask": True,
    "method.transfer_prompts": True,
    "method.key_loss": 0.5,
  },
  # Its prompts are those of CIFAR-100: the original has no such config.
  "five_datasets_dualprompt": {
    "scenario.name": "joined",
    "dataset.order": FIVE,
    "method.pool_size": 5,
  },
  "core50_l2p": {
    **L2P,
    "scenario.name": "domain_incremental",
    "scenario.augmented_test": True,
    "dataset.name": "core50",
    "method.length": 5,
    "method.mask_classes": False,
    **{
      f"optimizer.{group}.{option}": value
      for group in ("head", "prompt", "backbone")
      for option, value in (
        ("name", "sgd"),
        ("lr", 0.03),
        ("momentum", 0.9),
        ("nesterov", True),
        ("weight_decay", 0.0),
      )
    },
  },
  "cifar100_gaussian_l2p:shipped": {
    **L2P,
    "scenario.name": "gaussian",
    "scenario.num_stages": 200,
    "scenario.steps_per_stage": None,
    "scenario.width": 50.0,
    "scenario.measure_every": 10,
    "scenario.schedule_seed": 42,
    "scenario.legacy_threefry": True,
    "dataset.name": "cifar100",
    "method.restart_optimizer": False,
  },
}


@pytest.mark.parametrize("name", ORIGINAL)
def test_values_are_the_original_ones(name):
  config, expected = load(*name.split(":")), {**COMMON, **ORIGINAL[name]}
  if "optimizer.backbone.name" in expected:
    del expected["optimizer.backbone"]
  found = {
    key: functools.reduce(lambda part, word: part[word], key.split("."), config)
    for key in expected
  }
  assert found == expected


def test_paper_values():
  l2p = load("cifar100_l2p", "paper").method
  assert (l2p.top_k, l2p.length, l2p.key_loss) == (5, 5, 0.5)
  dual = load("cifar100_dualprompt", "paper")
  assert dual.method.length == 20
  assert dual.batch_size == 8 * dual.method.vote_group == 128
  assert dual.optimizer.prompt.lr == dual.optimizer.head.lr == 0.005
  five = load("five_datasets_l2p", "paper").method
  assert (five.pool_size, five.top_k, five.length) == (20, 4, 5)
  core50 = load("core50_l2p", "paper")
  assert core50.optimizer.backbone is None
  assert (core50.method.top_k, core50.optimizer.head.name) == (5, "adam")


def test_gaussian_readings_are_apart():
  stream, shipped = (
    load("cifar100_gaussian_l2p", a) for a in (None, "shipped")
  )
  found = [(c.epochs, c.scenario.steps_per_stage) for c in (stream, shipped)]
  assert found == [(1, 5), (5, None)]


@pytest.mark.parametrize("name", ["joined", "domain_incremental", "gaussian"])
def test_smoke_keeps_the_scenario(name):
  cases = [case for case in CASES if load(*case).scenario.name == name]
  assert cases
  for config, arg in cases:
    small = load(config, ",".join(filter(None, [arg, "smoke"])))
    assert small.scenario.name == name
    source, scenario = main.build_scenario(small)
    assert source.name.startswith(("synthetic", "collection"))
    assert 2 <= len(scenario.stages) <= 6
    assert any(stage.test_sets for stage in scenario.stages[:-1])


def test_data_dir_of_one_part_is_that_of_all():
  config = load("five_datasets_l2p")
  config.dataset.mnist.data_dir = "/data"
  parts = registry.plain(config.dataset)
  assert {parts[name]["data_dir"] for name in FIVE} == {"/data"}


@pytest.mark.parametrize(
  ("name", "classes", "count"),
  [
    ("cifar100_l2p", 100, 161_380),
    ("cifar100_dualprompt", 100, 407_140),
    ("imr_dualprompt", 200, 1_175_240),
    ("five_datasets_l2p", 50, 207_410),
    ("core50_l2p", 50, 85_883_186),
    ("cifar100_lora_sub", 100, 445_540),
    ("cifar100_coda_prompt", 100, 3_916_900),
    ("domainnet_lora_sub", 345, 1_739_865),
  ],
)
def test_number_of_trained_parameters(name, classes, count):
  params, trainable = shapes(load(name), classes)
  sizes = jax.tree.map(lambda p, on: p.size * on, params, trainable)
  assert sum(jax.tree.leaves(sizes)) == count


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("smok", "Unknown config argument 'smok'. Did you mean 'smoke'"),
    ("paper,smoke,paper=false", "argument 'paper' is given twice"),
    ("paper=maybe", "'paper=maybe' must be true or false"),
  ],
)
def test_unknown_arguments_are_named(arg, message):
  with pytest.raises(ValueError, match=message):
    load("cifar100_l2p", arg)


def test_unknown_reference_is_named():
  with pytest.raises(
    ValueError, match="Unknown method='jont'. Did you mean 'joint'"
  ):
    load("digits_reference", "method=jont")


def test_unknown_method_option_is_named():
  config = load("cifar100_l2p", "smoke")
  config.method.topk = 2
  with pytest.raises(ValueError, match="'topk' of the method 'l2p'.*'top_k'"):
    build(config, 10)


def test_unknown_key_on_the_command_line_is_named(tmp_path, main_py):
  process = main_py(
    "configs/cifar100_l2p.py:smoke", tmp_path, "--my_config.method.topk=2"
  )
  output, _ = process.communicate()
  assert process.returncode != 0
  assert 'Did you mean "top_k"' in output


def test_imagenet_r_takes_split_lists():
  lists = "train_list=a.txt,test_list=b.txt"
  options = registry.plain(load("imr_dualprompt", lists).dataset)
  row = datasets.DATASETS[options.pop("name")]
  inspect.signature(row).bind(**options)  # raises for an unknown option
  assert options["train_split"] == "test"
  with pytest.raises(ValueError, match="with lists, set --my_config.holdout"):
    load("imr_dualprompt", f"tune,{lists}")
