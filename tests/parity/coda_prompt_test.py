"""CODA-Prompt against the reference's figures: tests/golden/learning.

All sizes come from the files, so that others of the same keys can take their
place.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from libml import optim
from libml import problems
from libml import scenarios
from libml.devices.compiled import Compiled
from libml.train import steps
from methods import coda_prompt
from models import coda
from models import pretrained
from models import vit

FIGURES = {
  "learning/coda_prompt": {},
  "learning/coda_prompt_ortho": {
    "cfg/_order*": "order of the draws, which are stored by name"
  },
}
KINDS = {"e_p": "prompt", "e_k": "key", "e_a": "attention"}


def cfg(case, name):
  return case[f"cfg/{name}"].tolist()


@dataclasses.dataclass(frozen=True)
class Method:
  """A file's method and optimizer, and what is compiled of them."""

  method: Any
  optimizer: Any
  step: Callable[..., Any]
  gradient: Callable[..., Any]
  predict: Callable[..., Any]


class Data:
  """What of a stage's data the hooks ask for."""

  def __init__(self):
    self.compiled = Compiled()


def build(case):
  """Returns the method and the optimizer of a file."""
  num_tasks = cfg(case, "tasks")
  num_classes = num_tasks * cfg(case, "classes_per_task")
  width = cfg(case, "width")
  model = vit.build(
    num_classes=num_classes,
    image_size=cfg(case, "image"),
    patch_size=cfg(case, "patch"),
    width=width,
    depth=cfg(case, "depth"),
    num_heads=cfg(case, "heads"),
    mlp_dim=len(case["params/feat.blocks.0.mlp.fc1.bias"]),
    gelu="erf",
  )
  method = coda_prompt.CodaPrompt(
    model=model,
    problem=problems.PROBLEMS["classification"](),
    num_classes=num_classes,
    num_stages=num_tasks,
    epochs=cfg(case, "epochs"),
    e_layers=tuple(cfg(case, "e_layers")),
    pool_size=cfg(case, "pool"),
    length=cfg(case, "length"),
    ortho_loss=cfg(case, "ortho_mu"),
  )
  group = {
    "name": "adam",
    "lr": cfg(case, "lr"),
    "schedule": "late_quarter_cosine",
  }
  optimizer = optim.build(
    groups=(
      ("components", r"components/.*"),
      ("head", r"head/.*"),
      ("backbone", r".*"),
    ),
    epochs=method.epochs,
    components=group,
    head=group,
    backbone=None,
  )
  return method, optimizer


def read_params(case, method, folder):
  """Returns the stored parameters; the components are empty."""
  names = {"last.": "head.", "feat.": ""}
  weights = {}
  for name, value in case.part("params/").items():
    for theirs, ours in names.items():
      if name.startswith(theirs):
        name = ours + name.removeprefix(theirs)
        break
    weights[name] = np.ascontiguousarray(value)
  safetensors.save_file(weights, folder / "toy.safetensors")
  size = method.model.image_size
  shapes = jax.eval_shape(
    method.model.init,
    jax.random.key(0),
    {"image": jnp.zeros((1, size, size, 3))},
  )["params"]
  loaded = pretrained.load(folder / "toy.safetensors", shapes, head="keep")
  components = method.init_params(loaded, jax.random.key(0))["components"]
  return {**jax.tree.map(jnp.asarray, loaded), "components": components}


def stage(case, task):
  size = cfg(case, "classes_per_task")
  seen = tuple(range(size * (task + 1)))
  return scenarios.Stage(
    index=task,
    goal="learn",
    train={},
    test_sets={},
    classes={"learn": seen[-size:], "seen": seen},
  )


def image(array):
  pixels = np.asarray(array, np.float32).transpose(0, 2, 3, 1) / 255
  return jnp.asarray((pixels - 0.5) / 0.5)


def stored(case, prefix):
  """Returns {kind: [E, ...]} of the file's components under a prefix."""
  return {
    ours: np.stack(
      [case[f"{prefix}{theirs}_{layer}"] for layer in cfg(case, "e_layers")]
    )
    for theirs, ours in KINDS.items()
  }


def stored_head(case, prefix):
  return {
    "kernel": case[f"{prefix}last.weight"].T,
    "bias": case[f"{prefix}last.bias"],
  }


def trained(params):
  return {name: params[name] for name in ("components", "head")}


def wanted(case, prefix):
  return {
    "components": stored(case, prefix),
    "head": stored_head(case, prefix),
  }


def close(ours, theirs, tolerance):
  """Compares two trees of arrays."""
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance),
    ours,
    theirs,
  )


def near(ours, theirs):
  """Compares what Adam moved: its first steps are a sign function."""
  close(ours, theirs, 1e-4)
  errors = jax.tree.map(
    lambda a, b: abs(np.asarray(a) - b).ravel(), ours, theirs
  )
  errors = np.concatenate(jax.tree.leaves(errors))
  assert np.mean(errors <= 1e-5) >= 0.99


@pytest.mark.parametrize("path", FIGURES)
def test_tasks(golden, path, tmp_path):
  case = golden(*path.split("/"))
  method, optimizer = build(case)
  data = Data()
  state = steps.first_state(
    method, optimizer, read_params(case, method, tmp_path), jax.random.key(0)
  )
  step = steps.make_train_step(method.loss, method.extra_args, optimizer)
  ours = Method(
    method,
    optimizer,
    step=jax.jit(step),
    gradient=jax.jit(jax.grad(method.loss, has_aux=True)),
    predict=jax.jit(method.predict),
  )
  for task in range(method.num_stages):
    prefix, old = f"task{task}/", state.params["components"]
    state = method.before_stage(state, stage(case, task), data)
    draws = stored(case, f"{prefix}in/normal/")
    components = coda.begin(old, draws, jnp.int32(task * method.per_task))
    compare = near if task else lambda a, b: close(a, b, 2e-5)
    compare(components, stored(case, f"{prefix}init/"))
    state = state.replace(params={**state.params, "components": components})
    state = train(case, prefix, ours, state)
    measure(case, prefix, ours, state)


def train(case, prefix, ours, state):
  """Trains one task, holding each step to the file; returns the state."""
  losses = case[f"{prefix}out/loss"]
  images, labels = case[f"{prefix}in/images"], case[f"{prefix}in/labels"]
  assert images.shape[1] == cfg(case, "batch")
  state = steps.begin_stage(
    state,
    0,
    len(losses) // ours.method.epochs,
    jax.random.key(0),
    tx=ours.optimizer.tx,
    restart=ours.method.restart_optimizer,
  )
  for i, loss in enumerate(losses):
    batch = {
      "image": image(images[i % len(images)]),
      "label": jnp.asarray(labels[i % len(images)], jnp.int32),
    }
    if not i:
      check_gradient(case, prefix, ours, state, batch)
      current = np.flatnonzero(state.memory["classes"])
      logits = predict(ours, state, batch)["logits"][:, current]
      close(logits, case[f"{prefix}out/train_logits"], 2e-5)
    state, seen = ours.step(state, {"train": batch})
    np.testing.assert_allclose(seen["loss"], loss, rtol=0, atol=2e-5)
    for group in ("components", "head"):
      rate = seen[f"learning_rate/{group}"]
      np.testing.assert_allclose(rate, case[f"{prefix}out/lr"][i], rtol=1e-6)
    if not i:
      near(trained(state.params), wanted(case, f"{prefix}after1/"))
  near(trained(state.params), wanted(case, f"{prefix}after/"))
  return state


def check_gradient(case, prefix, ours, state, batch):
  """Holds the first step's gradient to the file."""
  grads, _ = ours.gradient(
    state.params, state.memory, {"train": batch}, jax.random.key(0)
  )
  expected = wanted(case, f"{prefix}grad/")
  largest = max(abs(v).max() for k, v in case.items() if "/grad/" in k)
  close(trained(grads), expected, 1e-5 * largest)


def predict(ours, state, batch):
  return ours.predict(state.params, state.memory, batch)[""]


def measure(case, prefix, ours, state):
  """Holds query, prefixes and logits after a task to the file."""
  method, batch = ours.method, {"image": image(case["in/test_images"])}
  query = method.find_query(state.params, batch["image"])
  close(query, case[f"{prefix}out/query"], 2e-5)
  prompts = method.prompts(state.params["components"], state.memory, query)
  for layer in method.e_layers:
    for row, kind in enumerate(("key", "value")):
      expected = case[f"{prefix}out/prefix_{kind}_{layer}"]
      found = prompts[layer]["prefix"][row].reshape(expected.shape)
      near(found, expected)
  seen = np.flatnonzero(state.memory["seen"])
  logits = predict(ours, state, batch)["logits"][:, seen]
  close(logits, case[f"{prefix}out/logits"], 2e-5)
