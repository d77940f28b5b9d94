"""Proximal operators of the Euclidean norm of a group of arrays."""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from libml import trees


class Problem(NamedTuple):
  """A group of arrays to shrink, or a stack of groups.

  Attributes:
    y: The arrays.
    h: Diagonal metric, arrays of the same shapes; []: Euclidean.
    threshold: float[], lambda.
    stacked: Whether the arrays [L, ...] are L groups, one for each index of the
      first axis.
  """

  y: list[jax.Array]
  h: list[jax.Array]
  threshold: jax.Array
  stacked: bool = False


class _Scaled(NamedTuple):
  """A problem whose h and threshold are divided by the largest entry of h.

  Attributes:
    hy: Products h y, at least float32.
    h: Diagonal metric, at most 1.
    threshold: float[], lambda.
  """

  hy: list[jax.Array]
  h: list[jax.Array]
  threshold: jax.Array


def metric_prox(y: Any, h: Any, threshold: Any, *, updates: int = 8) -> Any:
  r"""Returns the proximal operator of the norm in a diagonal metric.

  .. math::

    \arg\min_z \tfrac12 \sum_i h_i (z_i - y_i)^2 + \lambda \|z\|_2

  Where :math:`z \ne 0`, stationarity with :math:`\rho = \|z\|` gives

  .. math::

    z_i = \frac{\rho h_i y_i}{\rho h_i + \lambda}, \qquad
    \varphi(\rho) = \sum_i
      \Big(\frac{h_i y_i}{\rho h_i + \lambda}\Big)^2 = 1.

  :math:`\varphi` falls from :math:`\|h \circ y\|^2 / \lambda^2` at 0, so there
  is a root if and only if :math:`\|h \circ y\| > \lambda`; otherwise z is
  exactly 0. As :math:`\varphi^{-1/2}` is increasing and concave, Newton's
  method for :math:`\varphi^{-1/2} = 1` rises from any point below the root
  without overshooting. It starts at :math:`(\|h \circ y\| - \lambda) / \max h`.
  With constant h the result is :func:`soft_threshold` by :math:`\lambda / h`.

  Sums are computed in float32, or in float64 if y is float64.

  Args:
    y: Tree of arrays that form one group.
    h: Tree of the same shapes, the metric, above 0.
    threshold: float[], lambda, at least 0; at 0 the result is y.
    updates: Number of Newton updates. Three bring the norm within 1e-6 for
      metrics whose entries differ by a factor of up to 1e6.

  Returns:
    z, a tree like y.

  Raises:
    ValueError: `updates` is below 1.
  """
  leaves, structure = jax.tree.flatten(y)
  problem = Problem(leaves, jax.tree.leaves(h), jnp.asarray(threshold))
  return structure.unflatten(metric_proxes([problem], updates=updates)[0])


def soft_threshold(y: Any, threshold: Any) -> Any:
  r"""Returns :math:`\max(0, 1 - \lambda / \|y\|_2) \, y`.

  It is the proximal operator of :math:`\lambda \|\cdot\|_2` in the Euclidean
  metric: block soft-thresholding.

  Args:
    y: Tree of arrays that form one group.
    threshold: float[], lambda, at least 0.
  """
  leaves, structure = jax.tree.flatten(y)
  problem = Problem(leaves, [], jnp.asarray(threshold))
  return structure.unflatten(soft_thresholds([problem])[0])


def metric_proxes(
  problems: Sequence[Problem], *, updates: int = 8
) -> list[list[jax.Array]]:
  """Returns `metric_prox` of each problem; all are solved in one loop.

  Raises:
    ValueError: `updates` is below 1.
  """
  check_updates(updates)
  scaled = [_each(_scale, p)(p.y, p.h, p.threshold) for p in problems]

  def climb(_, norms):
    return [
      _each(_newton, p)(norm, part)
      for p, norm, (_, part) in zip(problems, norms, scaled, strict=True)
    ]

  norms = jax.lax.fori_loop(0, updates, climb, [norm for norm, _ in scaled])
  return [
    _each(_solution, p)(norm, part, p.y)
    for p, norm, (_, part) in zip(problems, norms, scaled, strict=True)
  ]


def soft_thresholds(problems: Sequence[Problem]) -> list[list[jax.Array]]:
  """Returns `soft_threshold` of each problem."""
  return [_each(_shrink, p)(p.y, p.h, p.threshold) for p in problems]


def check_updates(updates: int) -> None:
  """Checks the number of Newton updates.

  Raises:
    ValueError: A number below 1.
  """
  if updates < 1:
    raise ValueError(
      f"updates={updates} of Newton's method must be at least 1; 8 is enough "
      "for float64."
    )


def _each(function: Any, problem: Problem) -> Any:
  """Returns the function, vectorized over the groups if they are stacked."""
  if not problem.stacked:
    return function
  in_axes = (0, 0, None) if function in (_scale, _shrink) else 0
  return jax.vmap(function, in_axes)


def _sum(leaves: list[jax.Array]) -> jax.Array:
  return jnp.stack([jnp.sum(leaf) for leaf in leaves]).sum()


def _scale(y, h, threshold):
  """Returns a lower bound of z's norm, and the scaled problem."""
  h, y = trees.widened(h), trees.widened(y)
  largest = jnp.stack([jnp.max(leaf, initial=0.0) for leaf in h]).max()
  # Scaling h and lambda by a number leaves z as it is; without it, squares of
  # h could underflow.
  largest = jnp.where(largest > 0, largest, 1.0)
  h = [leaf / largest for leaf in h]
  threshold = (threshold / largest).astype(largest.dtype)
  hy = [a * b for a, b in zip(h, y, strict=True)]
  slope = jnp.sqrt(_sum([jnp.square(leaf) for leaf in hy]))
  return jnp.maximum(slope - threshold, 0.0), _Scaled(hy, h, threshold)


def _newton(norm, scaled):
  """Returns a better lower bound of the norm; 0 stays 0."""
  hy, h, threshold = scaled
  # At threshold 0, avoid 0 / 0: _solution returns y then.
  threshold = jnp.where(threshold > 0, threshold, 1.0)
  below = [norm * a + threshold for a in h]
  squares = [jnp.square(a / b) for a, b in zip(hy, below, strict=True)]
  phi = _sum(squares)
  chi = _sum([s * a / b for s, a, b in zip(squares, h, below, strict=True)])
  step = (jnp.sqrt(phi) - 1.0) * phi / jnp.where(chi > 0, chi, 1.0)
  return jnp.maximum(norm + step, norm)


def _solution(norm, scaled, y):
  hy, h, threshold = scaled
  on = threshold > 0
  safe = jnp.where(on, threshold, 1.0)
  shrunk = [norm * a / (norm * b + safe) for a, b in zip(hy, h, strict=True)]
  return [
    jnp.where(on, z.astype(leaf.dtype), leaf)
    for z, leaf in zip(shrunk, y, strict=True)
  ]


def _shrink(y, h, threshold):
  del h
  wide = trees.widened(y)
  norm = jnp.sqrt(_sum([jnp.square(leaf) for leaf in wide]))
  factor = 1.0 - threshold / jnp.where(norm > 0, norm, 1.0)
  factor = jnp.where(norm > threshold, factor, 0.0).astype(norm.dtype)
  return [
    jnp.where(threshold > 0, (factor * a).astype(leaf.dtype), leaf)
    for a, leaf in zip(wide, y, strict=True)
  ]
