"""The baselines on the tiny Face Transformer of tests/golden/gslora."""

import dataclasses

import face_toy
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import main
from configs import base
from configs import baselines
from libml import trees
from libml.train import steps
from libml.train import train_state
from models import layouts

SIZES = dict(
  name="face_vit",
  image_size=16,
  patch_size=8,
  stride=8,
  width=16,
  depth=4,
  mlp_dim=32,
  num_heads=2,
  dropout=0.0,
)


def build(name, dtype, *, parity=True, epochs=100, **options):
  """Returns a preset's method and optimizer, whose state[0] is a gradient."""
  config = base.get_config()
  config.epochs = epochs
  config.batch_size = 6
  arg = ConfigDict({"method": name, "parity": parity, "smoke": False})
  baselines.adapt(config, arg, blocks=SIZES["depth"], **options)
  config.model = {**SIZES, "dtype": dtype, "param_dtype": dtype}
  method = main.build_method(config, 10, 1)
  optimizer = main.build_optimizer(config, method)
  return method, remembering(optimizer)


def remembering(optimizer):
  """Returns the optimizer with a state whose [0] is the last gradient."""
  seen = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda updates, state, params=None: (updates, updates),
  )
  chain = optax.chain(seen, optimizer.tx)
  return dataclasses.replace(optimizer, tx=chain)


def leaves(file, prefix, module):
  """Returns the arrays of a prefix by our names, in our layout."""
  found = {
    name.removeprefix(prefix): value
    for name, value in file.items()
    if name.startswith(prefix)
  }
  expected = trees.flatten(face_toy.template(module))
  found = layouts.to_linen(found, expected, source=prefix, adapters="merged")
  return {n: a.reshape(expected[n].shape) for n, a in found.items()}


def tree(found, module):
  """Returns leaves by name as the module's parameters."""
  return trees.map_named(
    lambda name, leaf: jnp.asarray(found[name], leaf.dtype),
    face_toy.template(module),
  )


def batch(file, role, number, dtype):
  """Returns batch `number` of what the authors call "forget" or "remain"."""
  image = file[f"in/{role}_image"][number].transpose(0, 2, 3, 1)
  label = file[f"in/{role}_label"][number]
  return {
    "image": jnp.asarray(image, dtype),
    "label": jnp.asarray(label, jnp.int32),
  }


def start(method, optimizer, student, teacher, steps_per_epoch):
  """Returns the state in which a student has another one's memory."""
  state = steps.first_state(method, optimizer, teacher, jax.random.key(0))
  return train_state.TrainState(
    step=state.step,
    steps_per_epoch=jnp.asarray(steps_per_epoch, jnp.int32),
    params=student,
    opt_state=state.opt_state,
    memory=state.memory,
    rng=state.rng,
  )


def check_leaves(ours, theirs, *, dtype, float32, absolute=False):
  """Compares by name: those that the reference has, to 1e-10 in float64.

  Args:
    ours: Leaves by name.
    theirs: The stored ones.
    dtype: Of ours.
    float32: Error allowed in float32.
    absolute: Whether that is not relative to a leaf's largest entry.
  """
  assert theirs
  for name, value in theirs.items():
    assert ours[name].dtype == np.dtype(dtype), name
    scale = abs(value).max()
    error = 1e-10 * scale
    if dtype == "float32":
      error = float32 if absolute else float32 * scale
    np.testing.assert_allclose(
      ours[name], value, rtol=0, atol=error, err_msg=name
    )
