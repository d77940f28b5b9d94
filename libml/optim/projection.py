"""Projection of updates to subspaces, and Adam in its "epsilon hat" form."""

import math

import jax
import jax.numpy as jnp
import optax

from libml import trees


def project_updates() -> optax.GradientTransformationExtraArgs:
  r"""Multiplies updates by given matrices, on the left or on the right.

  For an update :math:`u` of a parameter for which a left factor :math:`L`, a
  right factor :math:`R`, or both are given, the transform returns

  .. math::

    u \leftarrow L \, u \, R.

  With :math:`L = V_k V_k^\top`, where :math:`V_k` has orthonormal columns,
  every update lies in the span of these columns, and so does the total change
  of the parameter. The update of a parameter without a factor does not change.
  At the end of a chain the transform projects the optimizer's step
  (LoRA-Sub-DRS, Adam-NSCL); at the start it projects the gradient (gradient
  projection memory), so that the moments are in the subspace, but Adam's step
  need not be.

  The factors are extra arguments of ``update``, so that one compiled step works
  for subspaces that change:

  - ``left``: nested dictionaries with the names of some parameters, each with
    a matrix :math:`[m, m]` for a parameter :math:`[m, n]`.
  - ``right``: the same with matrices :math:`[n, n]`.

  Products are computed in float32 with the highest precision; the update keeps
  its type.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs`.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> from libml.optim import projection
    >>> params = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(3)}
    >>> grads = {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}
    >>> tx = optax.chain(optax.sgd(0.5), projection.project_updates())
    >>> first_row = jnp.diag(jnp.array([1.0, 0.0]))
    >>> updates, _ = tx.update(
    ...   grads, tx.init(params), params, left={"a": first_row}
    ... )
    >>> print(updates["a"])
    [[-0.5 -0.5 -0.5]
     [ 0.   0.   0. ]]
    >>> print(updates["b"])
    [-0.5 -0.5 -0.5]

  References:
    Liu and Chang, `LoRA Subtraction for Drift-Resistant Space in
    Exemplar-Free Continual Learning <https://arxiv.org/abs/2503.18985>`_, 2025

    Wang et al., `Training Networks in Null Space of Feature Covariance for
    Continual Learning <https://arxiv.org/abs/2103.07113>`_, 2021

    Saha et al., `Gradient Projection Memory for Continual Learning
    <https://arxiv.org/abs/2103.09762>`_, 2021
  """

  def update(updates, state, params=None, *, left=None, right=None, **extra):
    del params, extra
    lefts, rights = trees.flatten(left), trees.flatten(right)

    def project(name, u):
      product = _multiply(name, "left", lefts[name], u) if name in lefts else u
      if name in rights:
        product = _multiply(name, "right", product, rights[name])
      return product.astype(u.dtype)

    return trees.map_named(project, updates), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def _multiply(name: str, side: str, a: jax.Array, b: jax.Array) -> jax.Array:
  square = a if side == "left" else b
  fits = a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0]
  if not fits or square.shape[0] != square.shape[1]:
    raise ValueError(
      f"The update of {name!r} cannot be projected: {a.shape} times {b.shape}; "
      "a left factor of a parameter [m, n] must be [m, m], a right one [n, n]."
    )
  return jnp.matmul(
    a.astype(jnp.float32),
    b.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )


def scale_by_adam_epsilon_hat(
  b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
  r"""Rescales updates by Adam with epsilon added before the bias correction.

  .. math::

    u_s = \frac{\sqrt{1 - \beta_2^s}}{1 - \beta_1^s} \cdot
      \frac{m_s}{\sqrt{v_s} + \hat\varepsilon}

  This is the form that the paper gives after algorithm 1 ("epsilon hat"), and
  that of TensorFlow 1. :func:`optax.scale_by_adam` adds epsilon after the bias
  correction, so its steps are larger where gradients are as small as epsilon:
  30 times in the first step at :math:`|g| = 10^{-9}`.

  Args:
    b1: Decay of the first moment.
    b2: Decay of the second moment.
    eps: Added to the square root before the bias correction.

  Returns:
    A :class:`optax.GradientTransformation`.

  References:
    Kingma and Ba, `Adam: A Method for Stochastic Optimization
    <https://arxiv.org/abs/1412.6980>`_, 2014, end of section 2
  """

  def init(params):
    return optax.ScaleByAdamState(
      count=jnp.zeros((), jnp.int32),
      mu=optax.tree.zeros_like(params),
      nu=optax.tree.zeros_like(params),
    )

  def update(updates, state, params=None):
    del params
    mu = optax.tree.update_moment(updates, state.mu, b1, 1)
    nu = optax.tree.update_moment(updates, state.nu, b2, 2)
    count = jnp.asarray(optax.safe_increment(state.count))
    step = count.astype(jnp.float32)
    rate = jnp.sqrt(_one_minus_power(b2, step)) / _one_minus_power(b1, step)
    scaled = jax.tree.map(
      lambda m, v: (rate * m / (jnp.sqrt(v) + eps)).astype(m.dtype), mu, nu
    )
    return scaled, optax.ScaleByAdamState(count, mu, nu)

  return optax.GradientTransformation(init, update)


def _one_minus_power(base: float, exponent: jax.Array) -> jax.Array:
  # In float32, 1 - base**exponent has a relative error of 1e-5 at 0.999.
  return -jnp.expm1(exponent * (math.log(base) if base else -math.inf))
