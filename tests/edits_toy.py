"""A run of three requests to forget, small and made without the loop."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from libml import trees
from models import checksums
from models import export
from models import lora
from models import vit

FIELDS = dict(num_classes=6, image_size=8)
LAYERS = r".*/MlpBlock_0/Dense_[01]"
IMAGE = jax.random.normal(jax.random.key(1), (12, 8, 8, 3))
REQUESTS = ((3, 1), (0,), (5, 2))
BLOCK = "Transformer/encoderblock_{}"
NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")
CONFIG = {
  "model": {"name": "vit", "variant": "smoke", "image_size": 8},
  "preprocess": {"eval": "native"},
}


def drop(name, leaf, blocks):
  """Zeroes what the group lasso would: adapters of some blocks."""
  gone = any(f"{BLOCK.format(i)}/" in name for i in blocks)
  return jnp.zeros_like(leaf) if gone else leaf


def keep(folder, number, adapters, classes):
  """Writes one request's edit, as the loop does."""
  flat = {k: np.asarray(v) for k, v in trees.flatten(adapters).items()}
  zero = {
    f"zero/{BLOCK.format(i)}": np.bool_(
      all(not v.any() for k, v in flat.items() if f"{BLOCK.format(i)}/" in k)
    )
    for i in range(5)
  }
  folder.mkdir(exist_ok=True)
  np.savez(
    folder / f"stage_{number}.npz",
    classes=np.asarray(classes, np.int32),
    scale=np.float32(0.5),
    **flat,
    **zero,
  )
  checksums.note(folder, f"stage_{number}.npz", weights=7)


def make(workdir):
  """Fills a workdir with three requests; returns the models between them.

  Each raises the loss of its classes with Adam on fresh adapters, which are
  merged after it. Request t leaves block t alone.
  """
  model = vit.build(
    "smoke", **FIELDS, lora={"layers": LAYERS, "rank": 4, "alpha": 2.0}
  )
  params = model.init(jax.random.key(0), {"image": IMAGE})["params"]
  rng = np.random.default_rng(0)
  params = trees.map_named(
    lambda name, leaf: (
      leaf + jnp.float32(rng.normal(scale=0.1, size=leaf.shape))
    ),
    params,
  )
  tx = optax.adam(0.02)

  @jax.jit
  def step(adapters, state, base, labels):
    def loss(adapters):
      outputs = model.apply(
        {"params": lora.join(base, adapters)}, {"image": IMAGE}
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(
        outputs["logits"], labels
      )
      return -jnp.minimum(losses, 10).mean()

    grads = jax.grad(loss)(adapters)
    updates, state = tx.update(grads, state, adapters)
    return optax.apply_updates(adapters, updates), state

  models = [jax.device_get(lora.split(params)[0])]
  for number, classes in enumerate(REQUESTS):
    base, adapters = lora.split(params)
    adapters = lora.restart(adapters, jax.random.key(number))
    state = tx.init(adapters)
    labels = jnp.resize(jnp.asarray(classes), len(IMAGE))
    for _ in range(5):
      adapters, state = step(adapters, state, base, labels)
    adapters = trees.map_named(
      functools.partial(drop, blocks=(number,)), adapters
    )
    keep(workdir / "edits", number, adapters, classes)
    params = lora.merge(lora.join(base, adapters), model.lora_scale)
    models.append(jax.device_get(lora.split(params)[0]))
  (workdir / "results.json").write_text(json.dumps({"classes": NAMES}))
  export.write(
    workdir / "export",
    model,
    params=params,
    config=CONFIG,
    classes=NAMES,
    forgotten=dict(enumerate(REQUESTS)),
    weights=7,
  )
  return models


def assert_close(ours, theirs, error=1e-6):
  """Compares trees by each leaf's largest element."""
  ours, theirs = trees.flatten(ours), trees.flatten(theirs)
  assert ours.keys() == theirs.keys()
  for name, leaf in ours.items():
    assert leaf.dtype == theirs[name].dtype
    largest = abs(theirs[name]).max()
    assert abs(leaf - theirs[name]).max() <= error * largest, name
