"""Export of a model: a folder with its weights, settings and classes.

  params.npz         official layout, adapters merged
  model.safetensors  timm's layout, or the published one of a Face Transformer;
                     missing where a method added leaves, such as prompts
  config.json        settings that build the model again, here and in timm
  classes.json       class ids and names, and the classes each request forgot
  checksums.json     SHA-256 of these files, which `build` and `read` check

`read` loads an export. If timm can express the model,
`timm.create_model("local-dir:FOLDER", pretrained=True)` loads it, too.
"""

from __future__ import annotations

import json
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
from models import checksums
from models import lora
from models import pretrained
from models import timm

FILES = (
  "params.npz",
  "model.safetensors",
  "config.json",
  "classes.json",
  checksums.FILE,
)


def write(
  folder: str | os.PathLike[str],
  model: nn.Module,
  *,
  params: Mapping[str, Any],
  config: Mapping[str, Any],
  classes: Sequence[str] | None = None,
  forgotten: Mapping[int, Sequence[int]] | None = None,
  weights: int | None = None,
) -> None:
  """Writes an export atomically; an older export in the folder is replaced.

  The same arguments give the same bytes.

  Args:
    folder: Folder of the export; missing parents are created.
    model: The module of the parameters.
    params: Parameters on the host; adapters among them are merged.
    config: Config of the run, as plain data: "model" and "preprocess" are read.
    classes: Name of each class id, [C]; None: the ids serve as names.
    forgotten: Request, from 0 -> ids of the classes that it forgot.
    weights: Checksum of the weights that the run did not change; edits of the
      same run have the same.

  Raises:
    FileExistsError: The folder holds files that are not an export's.
    ValueError: The number of names is not the model's number of classes, or a
      forgotten class is not one of the model's.
  """
  names = _names(model.num_classes, classes, forgotten or {})
  params, _ = lora.split(lora.merge(params, model.lora_scale))
  flat = trees.flatten(jax.device_get(params))
  params = trees.unflatten(dict(sorted(flat.items())))
  folder = pathlib.Path(folder).resolve()
  _check_replaceable(folder)
  part = folder.with_name(f".{folder.name}.part")
  shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed
  part.mkdir(parents=True)
  try:
    pretrained.save(part / "params.npz", params)
    if flat.keys() == trees.flatten(_template(model)).keys():
      save_torch(part / "model.safetensors", model, params)
    _write_json(part / "config.json", settings(model, config, classes))
    _write_json(part / "classes.json", names)
    written = sorted(path.name for path in part.iterdir())
    checksums.note(part, *written, weights=weights)
    _put(part, folder)
  finally:
    shutil.rmtree(part, ignore_errors=True)


def build(folder: str | os.PathLike[str]) -> nn.Module:
  """Returns the model of an export, without its parameters.

  Raises:
    FileNotFoundError: The folder or one of its files is missing.
    ValueError: A file is damaged.
  """
  folder = pathlib.Path(folder)
  if (folder / checksums.FILE).exists():  # earlier versions wrote none
    checksums.check(folder)
  try:
    options = json.loads((folder / "config.json").read_text())["model"]
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{folder / 'config.json'} cannot be read ({error}): export the model "
      "again."
    ) from None
  return MODELS[options.pop("name")](**options)


def read(folder: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
  """Returns the model of an export and its parameters.

  Raises:
    FileNotFoundError: The folder or one of its files is missing.
    ValueError: A file is damaged, or there are leaves that are not the model's,
      such as prompts; the message lists them.
  """
  model, path = build(folder), pathlib.Path(folder) / "params.npz"
  return model, pretrained.load(path, _template(model), head="keep")


def retrained(
  workdir: str | os.PathLike[str],
  template: Any,
  forgotten: Mapping[int, Sequence[int]],
) -> Any:
  """Returns the parameters of a run of "retrain", for audits to compare with.

  Args:
    workdir: Of a finished run of the method "retrain".
    template: Shapes of the parameters.
    forgotten: Request -> ids of the classes that the run must have forgotten.

  Raises:
    ValueError: The run has no export or a damaged one, saw a sample of the
      images only, or forgot other classes.
  """
  folder = pathlib.Path(workdir) / "export"
  if not (folder / "params.npz").is_file():
    raise ValueError(
      f"audit.retrained={str(workdir)!r} has no export of a finished run; run "
      "the method 'retrain' there, on all images (scenario.ratio=1.0), with "
      "export=True."
    )
  for name in ("params.npz", "classes.json"):
    checksums.check_listed(folder / name)
  path = pathlib.Path(workdir) / "config.json"
  try:
    scenario = dict(json.loads(path.read_text())["scenario"])
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path} cannot be read ({error}), so nothing says on which images "
      "audit.retrained was trained: restore the file, or retrain."
    ) from None
  sample = {key: scenario.get(key) for key in ("ratio", "shots")}
  if sample["ratio"] not in (None, 1.0) or sample["shots"] is not None:
    raise ValueError(
      f"audit.retrained={str(workdir)!r} saw only a sample of the images, "
      f"{sample}; retrain on all of them, with scenario.ratio=1.0."
    )
  told = json.loads((folder / "classes.json").read_text())["forgotten"]
  ours = {
    str(request): list(map(int, ids)) for request, ids in forgotten.items()
  }
  if told != ours:
    raise ValueError(
      f"audit.retrained={str(workdir)!r} forgot the classes {told} by request, "
      f"but this run forgets {ours}; retrain in the same scenario."
    )
  return pretrained.load(folder / "params.npz", template, head="keep")


def save_torch(
  path: str | os.PathLike[str], model: Any, params: Mapping[str, Any]
) -> None:
  """Writes plain parameters to .safetensors, in the layout of their model.

  That is timm's for a ViT and the published one for a Face Transformer.

  Raises:
    ValueError: There are leaves that are not the model's, such as adapters or
      prompts.
  """
  pretrained.save_torch(path, params, model.torch_layout)


def settings(
  model: nn.Module,
  config: Mapping[str, Any],
  classes: Sequence[str] | None = None,
) -> dict[str, Any]:
  """Returns the content of config.json.

  Args:
    model: The module.
    config: Config of the run: "model" and "preprocess" are read.
    classes: Name of each class id, for timm's label_names.

  Returns:
    "model", a key of MODELS with its options; "preprocess"; and timm's config
    of the model, or "not_in_timm": the fields that timm cannot express.
  """
  ours = {
    "model": {
      **config["model"],
      "lora": None,
      "num_classes": model.num_classes,
    },
    "preprocess": dict(config["preprocess"]),
  }
  others = timm.obstacles(model)
  if others:
    return {**ours, "not_in_timm": others}
  theirs = timm.config(model, config["preprocess"])
  if classes is not None:
    theirs["label_names"] = list(classes)
  return {**theirs, **ours}


def _names(
  num_classes: int,
  classes: Sequence[str] | None,
  forgotten: Mapping[int, Sequence[int]],
) -> dict[str, Any]:
  """Returns the content of classes.json; raises ValueError as `write` does."""
  if classes is not None and len(classes) != num_classes:
    raise ValueError(
      f"There are {len(classes)} class names for a model of {num_classes} "
      "classes; give one name for each id, forgotten classes included."
    )
  outside = sorted({c for ids in forgotten.values() for c in ids})
  outside = [c for c in outside if not 0 <= c < num_classes]
  if outside:
    raise ValueError(
      f"The forgotten classes {outside} are not among the model's, whose ids "
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
  """Raises FileExistsError if the folder holds files that are no export's."""
  if folder.is_dir():
    others = sorted({path.name for path in folder.iterdir()} - set(FILES))
  else:
    others = [folder.name] if folder.exists() else []
  if others:
    raise FileExistsError(
      f"{folder} holds files that are not part of an export "
      f"({', '.join(others[:3])}); use a new folder, or remove them."
    )


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2) + "\n")


def _put(part: pathlib.Path, folder: pathlib.Path) -> None:
  """Renames `part` to `folder`; an existing folder is moved away first."""
  old = folder.with_name(f".{folder.name}.old")
  shutil.rmtree(old, ignore_errors=True)
  if folder.exists():
    os.replace(folder, old)
  os.replace(part, folder)
  shutil.rmtree(old, ignore_errors=True)
