"""Steps confined to the weights that matter most, as an optax transform."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from libml import trees


def keep_salient() -> optax.GradientTransformationExtraArgs:
  """Zeroes the updates of weights outside a mask.

  At the end of a chain it keeps these weights bit for bit, decay included:
  SalUn's theta = m * (theta + step) + (1 - m) * theta. The mask is an extra
  argument of ``update``, so one compiled step serves masks that change:

  - ``salient``: name of a parameter -> bool array of its shape. A parameter
    without a mask passes through.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs`.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> from libml.optim import saliency
    >>> params = {"a": jnp.zeros(3)}
    >>> tx = optax.chain(optax.sgd(0.5), saliency.keep_salient())
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


def largest(
  leaves: Mapping[str, jax.Array], share: float
) -> dict[str, jax.Array]:
  """Returns which entries are among the largest in magnitude of all leaves.

  Args:
    leaves: Name -> array.
    share: Of all entries; those equal to the smallest of them count, too.

  Returns:
    Name -> bool array.
  """
  sizes = {name: jnp.abs(leaf) for name, leaf in leaves.items()}
  ordered = jnp.sort(jnp.concatenate([s.ravel() for s in sizes.values()]))
  first = min(round((1 - share) * ordered.size), ordered.size - 1)
  return {name: size >= ordered[first] for name, size in sizes.items()}
