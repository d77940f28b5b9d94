"""What a user gets wrong with a swap is said in one line, before a step."""

import jax
import numpy as np
import pytest
import toy
import walks
from PIL import Image

from configs import cifar100_l2p
from configs import custom_swap
from configs import digits_gs_lora
from configs import digits_l2p
from configs import digits_swap
from configs import imagenet100_swap
from libml import datasets
from libml import scenarios
from models import pretrained
from models import vit

SETS = {
  "learn": ("owl",),
  "forget": ("2_shark",),
  "retain": ("0_hen", "3_jay"),
}


def write(root, sets):
  """Writes four images a class into folders; one without a class is empty."""
  for key, names in sets.items():
    (root / key).mkdir(parents=True, exist_ok=True)
    for name in names:
      (root / key / name).mkdir()
      for i in range(4):
        image = Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8))
        image.save(root / key / name / f"{i}.png")
  return {key: str(root / key) for key in sets}


def swap_folders(root, known=4, **changes):
  roots = write(root, {**SETS, **changes})
  return datasets.DATASETS["swap_folders"](
    **roots, known=known, test_fraction=0.25
  )


FOLDERS = {
  "learn and forget": (
    {"learn": ("owl", "2_shark")},
    "'2_shark' among the classes to learn, and the head knows .* rename",
  ),
  "learn and retain": (
    {"learn": ("0_hen",)},
    "'0_hen' among the classes to learn, and the head knows",
  ),
  "forget and retain": (
    {"forget": ("3_jay",)},
    "'3_jay' among the classes to forget and among those to retain; take",
  ),
  "a new class of a known name": (
    {"learn": ("class 1",)},
    "'class 1' among the classes to learn, and the head knows",
  ),
  "no column": (
    {"retain": ("hen", "3_jay")},
    "'hen' has no column .* such as 17_jay, or set dataset.names",
  ),
  "two folders of one column": (
    {"retain": ("2_hen", "3_jay")},
    "'2_hen' and '2_shark' both have column 2; change the number",
  ),
  "a column outside the head": (
    {"retain": ("4_hen", "3_jay")},
    "'4_hen' has a column outside the head's, 0 to 3.* set dataset.known",
  ),
  "nothing to learn": (
    {"learn": ()},
    "no class to learn; .* a folder of images each",
  ),
  "nothing to forget": (
    {"forget": ()},
    "no class to forget; .* a folder of images each",
  ),
  "nothing to retain": (
    {"retain": ()},
    "no class to retain; .* a folder of images each",
  ),
}


@pytest.mark.parametrize(("sets", "message"), FOLDERS.values(), ids=FOLDERS)
def test_bad_folders_are_named(tmp_path, sets, message):
  with pytest.raises(ValueError, match=message) as error:
    swap_folders(tmp_path, **sets)
  assert "\n" not in str(error.value)


def test_missing_folder_is_named(tmp_path):
  roots = write(tmp_path, SETS)
  with pytest.raises(FileNotFoundError, match=r"No folder .*gone.*CLASS/"):
    datasets.DATASETS["swap_folders"](
      **{**roots, "retain": str(tmp_path / "gone")}, test_fraction=0.25
    )


def test_broken_image_is_named(tmp_path):
  roots = write(tmp_path, SETS)
  (tmp_path / "forget" / "2_shark" / "0.png").write_bytes(b"no image")
  with pytest.raises(ValueError, match=r"Cannot decode .*2_shark/0.png"):
    datasets.DATASETS["swap_folders"](**roots, test_fraction=0.25)


def test_names_and_another_number_of_them(tmp_path):
  roots = write(tmp_path, {"learn": ("x",), "forget": ("a",), "retain": ("b",)})
  (tmp_path / "names").write_text("a\nb\n")
  with pytest.raises(ValueError, match=r"known=3, and .*names names 2 classes"):
    datasets.DATASETS["swap_folders"](
      **roots, names=tmp_path / "names", known=3, test_fraction=0.25
    )


DIGITS = {"known": {"name": "digits"}, "forget": (6, 7), "learn": (8, 9)}
LISTS = {
  "learn and forget": (
    {"forget": (7, 8)},
    r"Classes \[8\] are both in dataset.learn and in dataset.forget; take",
  ),
  "learn and retain": (
    {"retain": (0, 9)},
    r"Classes \[9\] are both in dataset.learn and in dataset.retain; take",
  ),
  "forget and retain": (
    {"retain": (0, 6)},
    "'6' among the classes to forget and among those to retain",
  ),
  "a name that does not exist": (
    {"forget": ("ten",)},
    "Class 'ten' of dataset.forget does not exist in 'digits'; classes are 0",
  ),
  "a number that does not exist": (
    {"learn": (10,)},
    "Class 10 of dataset.learn does not exist in 'digits'",
  ),
  "a class twice": ({"forget": (6, "6")}, "dataset.forget names a class twice"),
  "no list": ({"forget": "6"}, "dataset.forget is '6'; it must be a list"),
  "nothing to forget": ({"forget": ()}, "no class to forget; name one"),
  "nothing to learn": ({"learn": ()}, "no class to learn; name one"),
  "nothing to retain": ({"retain": ()}, "no class to retain; name one"),
  "no list to learn": (
    {"learn": None},
    "dataset.learn names no class, and there is no data set dataset.new; give",
  ),
  "a new class of a known name": (
    {"new": {"name": "digits"}},
    "'8', '9' among the classes to learn, and the head knows",
  ),
  "no data set": (
    {"known": {"per_class": 2}},
    r"dataset.known has no data set; give known=\{'name': ...\}",
  ),
  "unknown data set": (
    {"new": {"name": "digit"}},
    "Unknown dataset 'digit'. Did you mean 'digits'",
  ),
  "several data sets": (
    {"new": {"name": "synthetic_sessions", "sessions": 2}},
    "dataset.new 'synthetic_sessions' is several data sets; name one",
  ),
}


@pytest.mark.parametrize(("changes", "message"), LISTS.values(), ids=LISTS)
def test_bad_lists_are_named(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    datasets.DATASETS["swap_classes"](**{**DIGITS, **changes})
  assert "\n" not in str(error.value)


SWAP = {"name": "swap_classes", **DIGITS}
CONFIGS = {
  "an order of another letter": (
    {"scenario__order": "lxf"},
    "order='lxf' must be 'joint', or letters l .* 'x' is neither",
  ),
  "an empty order": (
    {"scenario__order": ""},
    "order='' must be 'joint', or letters l .*, one at least",
  ),
  "a capital order": ({"scenario__order": "LF"}, "order='LF'.*'F' is neither"),
  "negative spare": ({"scenario__spare": -1}, "spare=-1 must be 0 or more"),
  "too many images to learn": (
    {"scenario__learn_shots": 1000},
    r"scenario.learn_shots=1000: Class 4 has 16 images, .* ask for 16",
  ),
  "too many images to retain": (
    {"scenario__shots": 1000},
    r"scenario.shots=1000: Class .* has 16 images",
  ),
  "ratio out of range": (
    {"scenario__shots": None, "scenario__ratio": 1.5},
    "scenario.ratio=1.5 must be above 0",
  ),
  "ratio of nothing": (
    {"scenario__shots": None, "scenario__ratio": 0.01},
    "scenario.ratio=0.01 of 32 images is less than one; raise it, or set",
  ),
  "one data set": (
    {"dataset": {"name": "digits"}},
    "'digits' does not say which .* set dataset.name to 'swap_folders' or",
  ),
  "negative weight": (
    {"method__retain_weight": -1.0},
    "method.retain_weight=-1.0 must be a finite number of at least 0",
  ),
  "bound that is no number": (
    {"method__bound": float("nan")},
    "bound=nan must",
  ),
  "fold with the old moments": (
    {"method__fold": True},
    "fold=True draws new adapters .*set method.restart_optimizer=True",
  ),
  "a batch larger than what there is to learn": (
    {"scenario__order": "l", "scenario__learn_shots": 3},
    "batch_size=8 is larger than the 6 images of 'learn' in stage 1; set it to",
  ),
  "no adapters": ({"model__lora": None}, "model has none; set model.lora to"),
  "audit of what is never forgotten": (
    {"scenario__order": "ll", "audit__stages": "last"},
    "audit.stages='last' .*none forgets classes; set audit.stages='none'",
  ),
}


@pytest.mark.parametrize(("changes", "message"), CONFIGS.values(), ids=CONFIGS)
def test_bad_setting_is_named(tmp_path, changes, message):
  config = digits_swap.get_config("smoke")
  with config.unlocked():
    if "dataset" in changes:
      config.dataset = changes.pop("dataset")
    toy.change(config, changes)
  with pytest.raises(ValueError, match=message) as error:
    walks.untrained(config, tmp_path)
  assert "\n" not in str(error.value)
  assert not list(tmp_path.glob("checkpoints/*"))


def test_swap_for_other_scenarios(tmp_path):
  for module in (digits_l2p, digits_gs_lora, cifar100_l2p):
    config = module.get_config("smoke")
    with config.unlocked():
      config.dataset = SWAP
    with pytest.raises(ValueError, match="'swap_classes' says .*'swapping'"):
      walks.untrained(config, tmp_path)
  with pytest.raises(ValueError, match="'swap_classes' says .*'swapping'"):
    scenarios.SCENARIOS["joined"](datasets.DATASETS[SWAP["name"]](**DIGITS))


def test_swap_in_a_collection():
  with pytest.raises(
    ValueError, match="Part 'mine' .*'swap_classes', .*remove it"
  ):
    datasets.DATASETS["collection"](order=("mine",), mine=SWAP)


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("learn=dogs", r"learn='dogs' must be one of \['cub', 'pets'"),
    ("learn=pets,classes=38", "classes=38 of learn='pets' must be 1 to 37"),
    ("classes=0", "classes=0 of learn='cub' must be 1 to 200"),
    ("ordre=fl", "Unknown config argument 'ordre'. Did you mean 'order'"),
  ],
)
def test_bad_argument_is_named(arg, message):
  with pytest.raises(ValueError, match=message):
    imagenet100_swap.get_config(arg)


def weights(path, classes, headless=False):
  """Writes a smoke ViT."""
  model = vit.build("smoke", image_size=8, num_classes=classes)
  inputs = {"image": np.zeros((1, 8, 8, 3), np.float32)}
  shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
  tree = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
  if headless:
    del tree["head"]
  pretrained.save(path, tree)
  return str(path)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (
      {"classes": 5},
      r"head of .*w.npz has 5 classes, but .* know 4, .*dataset.known=5",
    ),
    ({"classes": 4, "headless": True}, "w.npz has no head to which 1 new"),
  ],
)
def test_head_that_does_not_fit(tmp_path, options, message):
  roots = write(tmp_path, SETS)
  arg = ",".join(f"{key}={root}" for key, root in roots.items())
  config = custom_swap.get_config(f"{arg},known=4,variant=smoke,size=8")
  config.batch_size = 2
  config.model.gelu = "tanh"
  config.init_checkpoint = weights(tmp_path / "w.npz", **options)
  with pytest.raises(ValueError, match=message):
    walks.untrained(config, tmp_path / "run")
