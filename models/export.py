"""A model ready for use elsewhere: weights, settings and classes in a folder.

  params.npz         official layout, adapters merged
  model.safetensors  timm's layout, or the published one of a Face Transformer;
                     not there where a method added leaves, such as prompts
  config.json        what builds the model again, here and in timm
  classes.json       class ids and names, and what each request forgot

`read` loads it here, and where timm can express the model
`timm.create_model("local-dir:FOLDER", pretrained=True)` does there.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from libml import trees
from models import MODELS
from models import face_vit
from models import lora
from models import pretrained
from models import vit

FILES = ("params.npz", "model.safetensors", "config.json", "classes.json")

# (patch, width, mlp_dim, heads, depth) -> timm's name. Any other size is the
# base model with other arguments, which timm's config holds in all cases.
_TIMM_NAMES = {
  (16, 192, 768, 3, 12): "vit_tiny_patch16_224",
  (16, 384, 1536, 6, 12): "vit_small_patch16_224",
  (32, 768, 3072, 12, 12): "vit_base_patch32_224",
  (16, 1024, 4096, 16, 24): "vit_large_patch16_224",
  (32, 1024, 4096, 16, 24): "vit_large_patch32_224",
  (14, 1280, 5120, 16, 32): "vit_huge_patch14_224",
}
_TIMM_BASE = "vit_base_patch16_224"
_TIMM_GELUS = {"tanh": "gelu_tanh", "erf": "gelu"}

# Evaluation chain -> timm's crop mode; others only resize.
TIMM_CROPS = {"center_crop": "center", "reference": "squash"}

# Ours averages the class token, too, and after the last norm.
_TIMM_POOLS = {
  "token": {"global_pool": "token"},
  "gap": {"global_pool": "avg", "pool_include_prefix": True, "fc_norm": False},
}


def write(
  folder: str | os.PathLike[str],
  model: nn.Module,
  *,
  params: Mapping[str, Any],
  config: Mapping[str, Any],
  classes: Sequence[str] | None = None,
  forgotten: Mapping[int, Sequence[int]] | None = None,
) -> None:
  """Writes an export, all of it or nothing; an older one is replaced.

  The same arguments give the same bytes.

  Args:
    folder: Where; its parent is made if need be.
    model: The module that the parameters are of.
    params: On the host, with or without adapters; those that are there are
      merged.
    config: Of the run, as plain data: "model" and "preprocess" are read.
    classes: Name of each class id, [C]; None: the ids stand for themselves.
    forgotten: Request, from 0 -> ids of the classes that it forgot.

  Raises:
    FileExistsError: The folder holds something else than an export.
    ValueError: Another number of names than the model has classes, or a
      forgotten class that it has not.
  """
  names = _names(model.num_classes, classes, forgotten or {})
  params, _ = lora.split(lora.merge(params, model.lora_scale))
  flat = trees.flatten(jax.device_get(params))
  params = trees.unflatten(dict(sorted(flat.items())))
  folder = pathlib.Path(folder).resolve()
  _check_replaceable(folder)
  part = folder.with_name(f".{folder.name}.part")
  shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
  part.mkdir(parents=True)
  try:
    pretrained.save(part / "params.npz", params)
    if flat.keys() == trees.flatten(_template(model)).keys():
      save_torch(part / "model.safetensors", model, params)
    _write_json(part / "config.json", settings(model, config, classes))
    _write_json(part / "classes.json", names)
    _put(part, folder)
  finally:
    shutil.rmtree(part, ignore_errors=True)


def build(folder: str | os.PathLike[str]) -> nn.Module:
  """Returns the model of an export, without its parameters."""
  text = (pathlib.Path(folder) / "config.json").read_text()
  options = json.loads(text)["model"]
  return MODELS[options.pop("name")](**options)


def read(folder: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
  """Returns the model of an export and its parameters.

  Raises:
    FileNotFoundError: No such folder, or a file of it is missing.
    ValueError: Leaves that are not the model's, such as prompts; the message
      lists them.
  """
  model, path = build(folder), pathlib.Path(folder) / "params.npz"
  return model, pretrained.load(path, _template(model), head="keep")


def retrained(
  workdir: str | os.PathLike[str],
  template: Any,
  forgotten: Mapping[int, Sequence[int]],
) -> Any:
  """Returns the parameters of a run that never saw what others forgot.

  Args:
    workdir: Of a finished run of the method "retrain".
    template: Shapes of the parameters.
    forgotten: Request -> class ids that it must have been asked to forget.

  Raises:
    ValueError: There is no export, or of a run that forgot other classes.
  """
  folder = pathlib.Path(workdir) / "export"
  if not (folder / "params.npz").is_file():
    raise ValueError(
      f"audit.retrained={str(workdir)!r} has no export of a finished run; run "
      "the method 'retrain' there, on all images (scenario.ratio=1.0), with "
      "export=True."
    )
  asked = json.loads((pathlib.Path(workdir) / "config.json").read_text())
  sample = {key: asked["scenario"].get(key) for key in ("ratio", "shots")}
  if sample["ratio"] not in (None, 1.0) or sample["shots"] is not None:
    raise ValueError(
      f"audit.retrained={str(workdir)!r} saw a sample of the images, {sample}; "
      "retrain on all of them, with scenario.ratio=1.0."
    )
  told = json.loads((folder / "classes.json").read_text())["forgotten"]
  ours = {
    str(request): list(map(int, ids)) for request, ids in forgotten.items()
  }
  if told != ours:
    raise ValueError(
      f"audit.retrained={str(workdir)!r} forgot {told}, and this run forgets "
      f"{ours}, by request; retrain in the same scenario."
    )
  return pretrained.load(folder / "params.npz", template, head="keep")


def save_torch(
  path: str | os.PathLike[str], model: nn.Module, params: Mapping[str, Any]
) -> None:
  """Writes plain parameters to .safetensors, in the layout of their model.

  That is timm's for a ViT and the published one for a Face Transformer.

  Raises:
    ValueError: Leaves that are not the model's, such as adapters or prompts.
  """
  face = isinstance(model, face_vit.FaceViT)
  write_layout = pretrained.save_face if face else pretrained.save_timm
  write_layout(path, params)


def settings(
  model: nn.Module,
  config: Mapping[str, Any],
  classes: Sequence[str] | None = None,
) -> dict[str, Any]:
  """Returns what stands in config.json.

  Args:
    model: As in `write`, also the others.
    config: "model" and "preprocess" are read.
    classes: timm's label_names.

  Returns:
    "model", a row of MODELS with its options; "preprocess"; and what timm
    builds the same model from, or "not_in_timm": the fields in its way.
  """
  ours = {
    "model": {
      **config["model"],
      "lora": None,
      "num_classes": model.num_classes,
    },
    "preprocess": dict(config["preprocess"]),
  }
  if not isinstance(model, vit.ViT):
    return {**ours, "not_in_timm": [type(model).__name__]}
  plain = {
    "classifier": tuple(_TIMM_POOLS),
    "norm_pre_logits": (False,),
    "temperature": (1.0,),
    "block_epsilon": (1e-6,),
  }
  others = [
    f"{name}={getattr(model, name)!r}"
    for name, known in plain.items()
    if getattr(model, name) not in known
  ]
  if others:
    return {**ours, "not_in_timm": others}
  theirs = _timm(model, config["preprocess"])
  if classes is not None:
    theirs["label_names"] = list(classes)
  return {**theirs, **ours}


def _timm(model: vit.ViT, preprocess: Mapping[str, Any]) -> dict[str, Any]:
  """Returns timm's config.json of a ViT."""
  size, width = model.image_size, model.width
  ratio = model.mlp_dim / width
  if int(width * ratio) != model.mlp_dim:  # timm cuts the product
    ratio = math.nextafter(ratio, math.inf)
  sizes = (model.patch_size, width, model.mlp_dim, model.num_heads, model.depth)
  side = preprocess.get("resize") or size * 256 // 224
  crop = TIMM_CROPS.get(preprocess["eval"])
  return {
    "architecture": _TIMM_NAMES.get(sizes, _TIMM_BASE),
    "num_classes": model.num_classes,
    "num_features": width,
    "model_args": {
      "img_size": size,
      "patch_size": model.patch_size,
      "embed_dim": width,
      "depth": model.depth,
      "num_heads": model.num_heads,
      "mlp_ratio": ratio,
      "act_layer": _TIMM_GELUS[model.gelu],
      **_TIMM_POOLS[model.classifier],
    },
    "pretrained_cfg": {
      "input_size": [3, size, size],
      "fixed_input_size": True,
      "num_classes": model.num_classes,
      "first_conv": "patch_embed.proj",
      "classifier": "head",
      "interpolation": "bilinear",
      "crop_pct": size / side if crop else 1.0,
      "crop_mode": crop or "squash",
      "mean": list(preprocess.get("mean") or (0.0, 0.0, 0.0)),
      "std": list(preprocess.get("std") or (1.0, 1.0, 1.0)),
    },
  }


def _names(
  num_classes: int,
  classes: Sequence[str] | None,
  forgotten: Mapping[int, Sequence[int]],
) -> dict[str, Any]:
  """Returns what stands in classes.json."""
  if classes is not None and len(classes) != num_classes:
    raise ValueError(
      f"{len(classes)} class names for a model of {num_classes} classes; give "
      "one name an id, also for classes that were forgotten."
    )
  outside = sorted({c for ids in forgotten.values() for c in ids})
  outside = [c for c in outside if not 0 <= c < num_classes]
  if outside:
    raise ValueError(
      f"Forgotten classes {outside} of a model of {num_classes} classes; ids "
      f"are 0 to {num_classes - 1}."
    )
  return {
    "classes": {
      str(i): str(i) if classes is None else str(classes[i])
      for i in range(num_classes)
    },
    "forgotten": {
      str(request): [int(c) for c in forgotten[request]]
      for request in sorted(forgotten)
    },
  }


def _template(model: nn.Module) -> Any:
  """Returns the shapes of a model's parameters, without adapters."""
  inputs = model.example_input()
  shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
  return lora.split(shapes)[0]


def _check_replaceable(folder: pathlib.Path) -> None:
  """Raises FileExistsError for what is not ours to replace."""
  if folder.is_dir():
    others = sorted({path.name for path in folder.iterdir()} - set(FILES))
  else:
    others = [folder.name] if folder.exists() else []
  if others:
    raise FileExistsError(
      f"{folder} holds other things than an export ({', '.join(others[:3])}); "
      "take a new folder, or remove them."
    )


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2) + "\n")


def _put(part: pathlib.Path, folder: pathlib.Path) -> None:
  """Renames a folder; a full one cannot be written over, so it steps aside."""
  old = folder.with_name(f".{folder.name}.old")
  shutil.rmtree(old, ignore_errors=True)
  if folder.exists():
    os.replace(folder, old)
  os.replace(part, folder)
  shutil.rmtree(old, ignore_errors=True)
