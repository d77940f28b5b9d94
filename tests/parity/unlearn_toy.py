"""The baselines on the tiny Face Transformers of the family gslora."""

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


def build(name, file, dtype, *, epochs=100, step=None, **options):
  """Returns a preset's method and optimizer, whose state[0] is a gradient.

  Args:
    name: Row of METHODS; in the form of the released code.
    file: Gives the model.
    dtype: Of parameters and computation.
    epochs: Of a request.
    step: Settings of the optimizer that differ from the preset's, in every
      group that is trained; those that a group has not at all, as the decay of
      a bias, stay 0.
    **options: Of the method.
  """
  config = base.get_config()
  config.epochs = epochs
  arg = ConfigDict({"method": name, "parity": True, "smoke": False})
  sizes = face_toy.sizes(file)
  baselines.adapt(config, arg, blocks=sizes["depth"], **options)
  for group, _ in config.optimizer.groups:
    settings = config.optimizer[group]
    for key, value in (step or {}).items() if settings else ():
      if key not in ("weight_decay", "l2") or settings[key]:
        settings[key] = value
  config.model = {
    "name": "face_vit",
    **sizes,
    "dtype": dtype,
    "param_dtype": dtype,
  }
  method = main.build_method(config, face_toy.num_classes(file), 1)
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
  found = face_toy.weights(file, prefix, module)
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
  """Returns batch `number`, from the first again after the last.

  Args:
    file: The stored figures.
    role: "forget" or "remain", as the authors call them.
    number: Of the batch.
    dtype: Of the images.
  """
  number = number % len(file[f"in/{role}_image"])
  label = file[f"in/{role}_label"][number]
  return {
    "image": face_toy.images(file[f"in/{role}_image"][number], dtype),
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


def check_leaves(
  ours, theirs, *, dtype, float32, float64=1e-10, absolute=False
):
  """Compares by name: those that the reference has.

  Args:
    ours: Leaves by name.
    theirs: The stored ones.
    dtype: Of ours.
    float32: Error allowed in float32.
    float64: Error allowed in float64, relative to a leaf's largest entry.
    absolute: Whether float32 is not relative to a leaf's largest entry.
  """
  assert theirs
  for name, value in theirs.items():
    assert ours[name].dtype == np.dtype(dtype), name
    scale = abs(value).max()
    error = float64 * scale
    if dtype == "float32":
      error = float32 if absolute else float32 * scale
    np.testing.assert_allclose(
      ours[name], value, rtol=0, atol=error, err_msg=name
    )
