"""What a user gets wrong with forgetting is said in one line, before a step."""

import gs_toy
import pytest
import toy
import walks

from configs import common
from configs import imagenet100_gs_lora

LEARNING = {
  "name": "class_incremental",
  "num_tasks": 3,
  "order_seed": None,
  "reverse": False,
  "task_incremental": False,
}
CASES = {
  "fewer betas than requests": (
    {"method__beta": (0.2, 0.2)},
    r"beta=\(0.2, 0.2\) must hold a finite number .* each of the 3 requests",
  ),
  "negative beta": (
    {"method__beta": (0.2, -0.2, 0.2)},
    r"beta=\(0.2, -0.2, 0.2\) must hold a finite number of at least 0",
  ),
  "beta that is no number": (
    {"method__beta": (0.2, float("nan"), 0.2)},
    r"beta=\(0.2, nan, 0.2\) must hold",
  ),
  "negative alpha": (
    {"method__alpha": -0.1},
    r"alpha=-0.1 must be a finite number of at least 0",
  ),
  "infinite bound": (
    {"method__bound": float("inf")},
    r"bound=inf must be a finite number of at least 0",
  ),
  "alpha after the last epoch": (
    {"method__alpha_epoch": 5},
    r"alpha_epoch=5 must be 0 to .*epochs=4",
  ),
  "average that never moves": (
    {"method__average_decay": 1.0},
    r"average_decay=1.0 must be at least 0 and below 1",
  ),
  "unknown grouping": (
    {"method__grouping": "blocks"},
    r"grouping='blocks' must be one of \['block', .*'matrix'\]",
  ),
  "a head trained beside": (
    {"optimizer__head": common.adam(0.1)},
    r"GS-LoRA trains adapters only, .*'head/bias' and 1 more parameters; set "
    r"their group",
  ),
  "no proximal step": (
    {"optimizer__lora__name": "adam"},
    r"by a proximal step, which none of .*'proximal_adam'.*option that adds",
  ),
  "a proximal step that shrinks nothing": (
    {"method__subgradient": True, "optimizer__lora__name": "proximal_adam"},
    r"groups \['lora'\] take a proximal step, .*option that leaves",
  ),
  "adapters that nobody trains": (
    {"optimizer__lora": None},
    r"must train .*lora_a and freeze",
  ),
  "no adapters": ({"model__lora": None}, r"model has none; set model.lora to"),
  "a scenario to learn": (
    {"scenario": LEARNING},
    r"Stage 1 .* is to learn, and GsLora can only forget; take another method",
  ),
  "a class that does not exist": (
    {"scenario__requests": ((7,),)},
    r"Class 7 of request 0 does not exist in 'synthetic'",
  ),
  "rehearsal": (
    {"rehearsal__per_class": 2},
    r"rehearsal.per_class=2 keeps images of what is learned, and stage 1 is",
  ),
}
PLUS_CASES = {
  "fewer pushes than requests": (
    {"method__proto_forget": (0.1,)},
    r"proto_forget=\(0.1,\) must hold .* each of the 3 requests",
  ),
  "fewer pulls than requests": (
    {"method__proto_retain": (0.0, 0.0)},
    r"proto_retain=\(0.0, 0.0\) must hold",
  ),
  "unknown distance": (
    {"method__proto_distance": "cosine"},
    r"proto_distance='cosine' must be one of \('kl', 'l2'\)",
  ),
  "unknown source": (
    {"method__proto_source": "first"},
    r"proto_source='first' must be one of \('start', 'pretrained'\)",
  ),
}


def refuse(config, workdir, message):
  with pytest.raises(ValueError, match=message) as error:
    walks.untrained(config, workdir)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(("changes", "message"), CASES.values(), ids=CASES)
def test_bad_setting_is_named(tmp_path, changes, message):
  refuse(gs_toy.tiny(**changes), tmp_path, message)


@pytest.mark.parametrize(
  ("changes", "message"), PLUS_CASES.values(), ids=PLUS_CASES
)
def test_bad_setting_of_prototypes_is_named(tmp_path, changes, message):
  config = gs_toy.tiny("gs_lora_plus", **changes)
  refuse(config, tmp_path, message)


def test_method_that_only_learns_is_named(tmp_path):
  scenario = common.forgetting(num_requests=3, classes_per_request=1, ratio=0.5)
  config = toy.tiny(scenario=scenario)
  refuse(config, tmp_path, r"is to forget, and L2P can only learn; take")


def test_margin_needs_labels_that_are_classes(tmp_path):
  config = gs_toy.tiny(mixing__mixup=0.2)
  config.model = {
    "name": "face_vit",
    "variant": "smoke",
    "image_size": 8,
    "depth": 1,
    "lora": common.ffn_lora(rank=2),
  }
  refuse(config, tmp_path, "GsLora on FaceViT takes one class an image")


def test_prototypes_need_labels_that_are_classes(tmp_path):
  config = gs_toy.tiny("gs_lora_plus", mixing__mixup=0.2, model__depth=1)
  refuse(config, tmp_path, "GsLoraPlus on ViT takes one class an image")


def test_a_request_is_a_list(tmp_path):
  for requests in ((4, 5), ("45",), ((4.5,),)):
    config = gs_toy.tiny(scenario__requests=requests)
    refuse(config, tmp_path, "must be a list|does not exist")


def test_a_group_shrinks_in_one_optimizer_group(tmp_path):
  config = gs_toy.tiny()
  rates = config.optimizer.lora.to_dict()
  with config.unlocked():
    config.optimizer.b = {**rates, "name": "adam"}
    config.optimizer.groups = (
      ("lora", r".*/lora_a"),
      ("b", r".*/lora_b"),
      *config.optimizer.groups[1:],
    )
  refuse(config, tmp_path, r"'b', 'lora'.*; put them into one")


def test_others_need_the_names_of_the_head():
  with pytest.raises(ValueError, match="give names=FILE"):
    imagenet100_gs_lora.get_config("others=x")
