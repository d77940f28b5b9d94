"""General optax transforms; some take extra arguments such as `epoch`."""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from libml import trees
from libml.optim import schedules


class RateState(NamedTuple):
  """The learning rate of the last step, float32[], for the log."""

  learning_rate: jax.Array

  def metrics(self, group: str) -> dict[str, jax.Array]:
    """Returns the learning rate of the parameter group."""
    return {f"learning_rate/{group}": self.learning_rate}


def scale_by_rate(
  rate: schedules.Schedule,
) -> optax.GradientTransformationExtraArgs:
  """Multiplies updates by -rate(epoch); `epoch` is an extra argument."""

  def init(params):
    del params
    return RateState(jnp.zeros((), jnp.float32))

  def update(updates, state, params=None, *, epoch: Any = None, **extra):
    del state, params, extra
    lr = rate(epoch)
    scaled = jax.tree.map(lambda u: (-lr * u).astype(u.dtype), updates)
    return scaled, RateState(lr.astype(jnp.float32))

  return optax.GradientTransformationExtraArgs(init, update)


class ClipState(NamedTuple):
  """The gradient's norm before the last clipping, float32[], for the log."""

  l2_grads: jax.Array

  def metrics(self, group: str) -> dict[str, jax.Array]:
    """Returns the norm."""
    del group
    return {"l2_grads": self.l2_grads}


def clip_by_global_norm(
  max_norm: float | None,
) -> optax.GradientTransformationExtraArgs:
  """Scales updates by min(1, max_norm / (norm + 1e-6)), and records the norm.

  Unlike :func:`optax.clip_by_global_norm`, it has the 1e-6 of L2P's code and
  keeps the norm in its state.

  Args:
    max_norm: Largest norm; None: the norm is recorded only.
  """

  def init(params):
    del params
    return ClipState(jnp.zeros((), jnp.float32))

  def update(updates, state, params=None, **extra):
    del state, params, extra
    norm = optax.tree.norm(updates)
    if max_norm is not None:
      scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))
      updates = jax.tree.map(lambda u: (scale * u).astype(u.dtype), updates)
    return updates, ClipState(norm)

  return optax.GradientTransformationExtraArgs(init, update)


def unit_columns() -> optax.GradientTransformationExtraArgs:
  """Changes updates so that matrices have columns of length 1 after the step.

  It is L2P's weight_norm, and must come after the learning rate.
  """

  def project(update, param):
    if param.ndim != 2:
      return update
    moved = param + update
    norm = optax.safe_norm(moved, 0.0, axis=0, keepdims=True)
    return moved / (norm + 1e-10) - param

  def update(updates, state, params=None, **extra):
    del extra
    return jax.tree.map(project, updates, params), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def keep_salient() -> optax.GradientTransformationExtraArgs:
  """Zeroes the updates of weights outside a mask.

  At the end of a chain these weights stay bit for bit the same, because weight
  decay is masked, too: SalUn's theta = m * (theta + step) + (1 - m) * theta.
  The mask is an extra argument of ``update``, so that one compiled step works
  for masks that change:

  - ``salient``: nested dictionaries with the names of some parameters, each
    with a bool array of the parameter's shape. The update of a parameter
    without a mask does not change.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs`.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> from libml.optim import transforms
    >>> params = {"a": jnp.zeros(3)}
    >>> tx = optax.chain(optax.sgd(0.5), transforms.keep_salient())
    >>> updates, _ = tx.update(
    ...   {"a": jnp.ones(3)},
    ...   tx.init(params),
    ...   params,
    ...   salient={"a": jnp.array([True, False, True])},
    ... )
    >>> print(updates["a"])
    [-0.5  0.  -0.5]

  References:
    Fan et al., `SalUn: Empowering Machine Unlearning via Gradient-based Weight
    Saliency <https://arxiv.org/abs/2310.12508>`_, ICLR 2024
  """

  def update(updates, state, params=None, *, salient=None, **extra):
    del params, extra
    masks = trees.flatten(salient)

    def mask(name, u):
      return jnp.where(masks[name], u, 0) if name in masks else u

    return trees.map_named(mask, updates), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )
