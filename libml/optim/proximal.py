"""Optimizers with a proximal step for the group lasso, to exact zeros."""

import math
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from libml import registry
from libml.optim import group_lasso
from libml.optim import proximal_step
from libml.optim import shrinkage

# Name -> function of the momentum that returns the factor of a new gradient,
# and the limit of momentum / gradient under a constant gradient.
ACCUMULATORS = {
  "trace": lambda mu: (1.0, 1.0 / (1.0 - mu)),
  "ema": lambda mu: (1.0 - mu, 1.0),
}


class ProximalAdamState(NamedTuple):
  """Moments of the loss's gradient, without the penalty, and metrics.

  Attributes:
    count: int32[], number of updates so far.
    mu: First moments, float32.
    nu: Second moments, float32.
    learning_rate: float32[], rate of the last step.
    zero_groups: int32[], number of lasso groups that are exactly zero after the
      last step.
  """

  count: jax.Array
  mu: Any
  nu: Any
  learning_rate: jax.Array
  zero_groups: jax.Array

  def metrics(self, group: str) -> dict[str, jax.Array]:
    """Returns the learning rate, and the number of lasso groups at zero."""
    return _metrics(self, group)


class ProximalSgdState(NamedTuple):
  """Momentum of the loss's gradient, without the penalty, and metrics.

  Attributes:
    count: int32[], number of updates so far.
    trace: Momentum, float32; None without momentum.
    learning_rate: float32[], rate of the last step.
    zero_groups: int32[], number of lasso groups that are exactly zero after the
      last step.
  """

  count: jax.Array
  trace: Any
  learning_rate: jax.Array
  zero_groups: jax.Array

  def metrics(self, group: str) -> dict[str, jax.Array]:
    """Returns the learning rate, and the number of lasso groups at zero."""
    return _metrics(self, group)


def proximal_group_lasso(
  learning_rate: optax.ScalarOrSchedule,
  alpha: optax.ScalarOrSchedule,
  groups: group_lasso.LassoGroups,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  updates: int = 8,
  weights: str = "one",
  clock: str | None = None,
  stacked: Callable[[str], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""AdamW for a loss plus a group lasso, which makes lasso groups zero.

  It minimizes :math:`f(\theta) + \alpha \sum_g w_g \|\theta_g\|_2` over
  disjoint lasso groups g, from gradients of f alone. Let
  :math:`\hat m, \hat v` be Adam's bias-corrected moments of these gradients,
  :math:`h = \sqrt{\hat v} + \varepsilon`, and y the result of AdamW's step,

  .. math::

    y = \theta - \eta \, (\hat m / h + \omega \theta).

  Without decay, y minimizes :math:`\hat m^\top (z - \theta) + \frac{1}{2 \eta}
  \sum_i h_i (z_i - \theta_i)^2` over z: the loss to first order, with a
  proximity term in the diagonal metric h. Adding the penalty to this objective
  gives the step

  .. math::

    \theta \leftarrow \arg\min_z \tfrac12 \sum_i h_i (z_i - y_i)^2
      + \eta \alpha \sum_g w_g \|z_g\|_2,

  which is :func:`shrinkage.metric_prox` of each lasso group. Without decay, a
  fixed point has :math:`0 \in \nabla f + \alpha w_g \partial \|\theta_g\|` for
  any h, so the preconditioner does not change the solution. It does change it
  if y is shrunk in the Euclidean metric (:func:`decoupled_group_lasso`). Adding
  a subgradient of the penalty to Adam's gradient does not change the solution
  either, but never reaches exact zeros. With alpha 0 the steps are those of
  :func:`optax.adamw`; parameters without a lasso group always take these steps.

  A lasso group at zero stays there while :math:`\|\hat m_g\| \le \alpha w_g`.
  If both factors of a product A B are zero, their gradients are zero and they
  stay zero: keep alpha at 0 until B has grown.

  The step contains the learning rate, so the transform must be the last of a
  chain: nothing may rescale its output. The extra argument `alpha` of
  ``update`` (float[]) replaces the given alpha, so that one compiled step works
  for an alpha that changes; other extra arguments are ignored. Moments and
  norms are at least float32, and zeros are exact in any type. Leaves may be
  sharded under jit, but not inside shard_map, where the norms would be those of
  shards.

  Args:
    learning_rate: Eta, or its schedule over the number of updates so far.
    alpha: Strength of the penalty, or its schedule.
    groups: Function from the name of a parameter, such as
      "encoder/block_0/kernel", to the name of its lasso group, or to None.
    b1: Decay of the first moment.
    b2: Decay of the second moment.
    eps: Added to the square root of the second moment.
    weight_decay: Omega, the decoupled weight decay of all parameters.
    updates: Number of Newton updates, see :func:`shrinkage.metric_prox`.
    weights: w_g, "one", or "sqrt_size": the root of the group's size.
    clock: Name of the extra argument of ``update`` that schedules are functions
      of; None: the number of updates so far.
    stacked: Function that says whether the parameter of a name holds many
      layers, one for each index of its first axis (nn.scan). Each layer is then
      a lasso group of its own.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs`.

  Raises:
    ValueError: A number is out of range or `weights` is unknown; in ``init``,
      no parameter is in a lasso group.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> from libml.optim import group_lasso, proximal
    >>> params = {"a": {"w": jnp.ones(1)}, "b": {"w": jnp.ones(3)}}
    >>> def loss(params):
    ...   a, b = params["a"]["w"], params["b"]["w"]
    ...   return jnp.sum(0.5 * (a - 3) ** 2) + 0.1 * jnp.sum(b)
    >>> tx = proximal.proximal_group_lasso(
    ...   0.1, 1.0, group_lasso.by_pattern("(.*)/w")
    ... )
    >>> @jax.jit
    ... def step(params, state):
    ...   updates, state = tx.update(jax.grad(loss)(params), state, params)
    ...   return optax.apply_updates(params, updates), state
    >>> state = tx.init(params)
    >>> for _ in range(100):
    ...   params, state = step(params, state)
    >>> print(params["a"]["w"].round(2))  # 3 - alpha
    [2.]
    >>> print(params["b"]["w"], state.zero_groups)
    [0. 0. 0.] 1

  References:
    Deleu and Bengio, `Structured Sparsity Inducing Adaptive Optimizers for Deep
    Learning <https://arxiv.org/abs/2102.03869>`_, 2021

    Yun et al., `Adaptive Proximal Gradient Methods for Structured Neural
    Networks <https://arxiv.org/abs/2007.07484>`_, NeurIPS 2021

    Loshchilov and Hutter, `Decoupled Weight Decay Regularization
    <https://arxiv.org/abs/1711.05101>`_, ICLR 2019
  """
  shrinkage.check_updates(updates)
  for key, value in {"b1": b1, "b2": b2}.items():
    if not 0 <= value < 1:
      raise ValueError(f"{key}={value} must be at least 0 and below 1.")
  if not eps > 0:
    raise ValueError(f"eps={eps} must be above 0.")
  if not 0 <= weight_decay < math.inf:
    raise ValueError(
      f"weight_decay={weight_decay} must be at least 0 and finite."
    )
  adam: Any = optax.scale_by_adam(b1, b2, eps)

  def advance(inner, grads, theta, rate):
    direction, after = adam.update(grads, optax.ScaleByAdamState(*inner))
    decayed = jax.tree.map(lambda d, p: d + weight_decay * p, direction, theta)
    nu_hat = optax.tree.bias_correction(after.nu, b2, after.count)
    metric = jax.tree.map(lambda v: jnp.sqrt(v) + eps, nu_hat)
    return after, _descend(decayed, rate), metric

  def prox(problems):
    return shrinkage.metric_proxes(problems, updates=updates)

  penalty = proximal_step.Penalty(
    learning_rate=learning_rate,
    alpha=alpha,
    groups=groups,
    weights=weights,
    clock=clock,
    stacked=stacked,
  )
  return proximal_step.transform(
    ProximalAdamState,
    penalty,
    start=adam.init,
    advance=advance,
    prox=prox,
  )


def proximal_group_lasso_sgd(
  learning_rate: optax.ScalarOrSchedule,
  alpha: optax.ScalarOrSchedule,
  groups: group_lasso.LassoGroups,
  *,
  momentum: float = 0.0,
  nesterov: bool = False,
  accumulator: str = "trace",
  weights: str = "one",
  clock: str | None = None,
  stacked: Callable[[str], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""SGD for a loss plus a group lasso, which makes lasso groups zero.

  Each step of SGD is followed by :func:`shrinkage.soft_threshold` of each
  lasso group with the threshold :math:`\eta \alpha w_g c`. The factor c keeps
  the fixed points those of the given alpha: there the momentum is c times the
  gradient, with :math:`c = 1 / (1 - \mu)` for :func:`optax.trace`
  (:math:`m \leftarrow \mu m + g`) and :math:`c = 1` for an average
  (:math:`m \leftarrow \mu m + (1 - \mu) g`). All else is as in
  :func:`proximal_group_lasso`; alpha 0 gives :func:`optax.sgd`.

  Args:
    learning_rate: Eta, or its schedule over the number of updates so far.
    alpha: Strength of the penalty, or its schedule.
    groups: As in :func:`proximal_group_lasso`.
    momentum: Mu; 0: no momentum is kept.
    nesterov: Whether to use Nesterov momentum, as in :func:`optax.trace`.
    accumulator: "trace" or "ema" (an average without bias correction).
    weights: w_g, "one" or "sqrt_size".
    clock: As in :func:`proximal_group_lasso`.
    stacked: As in :func:`proximal_group_lasso`.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs`.

  Raises:
    ValueError: A number is out of range, or `weights` or `accumulator` is
      unknown; in ``init``, no parameter is in a lasso group.

  References:
    Duchi and Singer, Efficient Online and Batch Learning Using Forward Backward
    Splitting, JMLR 10, 2009

    Yuan and Lin, Model Selection and Estimation in Regression with Grouped
    Variables, Journal of the Royal Statistical Society B 68, 2006
  """
  if not 0 <= momentum < 1:
    raise ValueError(f"momentum={momentum} must be at least 0 and below 1.")
  if accumulator not in ACCUMULATORS:
    raise ValueError(
      f"Unknown accumulator {accumulator!r}. "
      f"{registry.nearest(accumulator, ACCUMULATORS)}"
    )
  share, gain = ACCUMULATORS[accumulator](momentum)

  def start(theta):
    trace = optax.tree.zeros_like(theta) if momentum else None
    return jnp.zeros((), jnp.int32), trace

  def advance(inner, grads, theta, rate):
    del theta
    count, trace = inner
    direction = jax.tree.map(lambda g: share * g, grads)
    if momentum:
      trace = _ahead(direction, trace, momentum)
      direction = _ahead(direction, trace, momentum) if nesterov else trace
    return (optax.safe_increment(count), trace), _descend(direction, rate), None

  penalty = proximal_step.Penalty(
    learning_rate=learning_rate,
    alpha=alpha,
    groups=groups,
    weights=weights,
    clock=clock,
    stacked=stacked,
    gain=gain,
  )
  return proximal_step.transform(
    ProximalSgdState,
    penalty,
    start=start,
    advance=advance,
    prox=shrinkage.soft_thresholds,
  )


def decoupled_group_lasso(
  learning_rate: optax.ScalarOrSchedule,
  alpha: optax.ScalarOrSchedule,
  groups: group_lasso.LassoGroups,
  *,
  weights: str = "one",
  clock: str | None = None,
  stacked: Callable[[str], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Shrinks each lasso group's norm by :math:`\eta \alpha w_g` after a step.

  It must be the last transform of a chain, after the scaling by the learning
  rate, and applies :func:`shrinkage.soft_threshold` to :math:`\theta + u`.
  After Adam it does not minimize a loss plus a group lasso: its fixed points
  have :math:`\hat m / h + \alpha w_g \theta / \|\theta\| = 0` in place of
  :math:`\nabla f + \ldots = 0`, just as AdamW's decay is not the gradient of a
  loss. The norm of a group without gradient falls by :math:`\eta \alpha w_g`
  per step, whatever h is, and by :math:`\alpha w_g \sum \eta` in total. So its
  alpha has another scale than that of :func:`proximal_group_lasso`; use the
  latter to minimize the sum of both.

  Args:
    learning_rate: Eta, the rate by which the updates were scaled.
    alpha: Strength, or its schedule.
    groups: As in :func:`proximal_group_lasso`.
    weights: w_g, "one" or "sqrt_size".
    clock: As in :func:`proximal_group_lasso`.
    stacked: As in :func:`proximal_group_lasso`.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs`.

  Raises:
    ValueError: A number is out of range or `weights` is unknown; in ``init``,
      no parameter is in a lasso group.
  """

  def start(theta):
    del theta
    return jnp.zeros((), jnp.int32), None

  def advance(inner, step, theta, rate):
    del theta, rate
    return (optax.safe_increment(inner[0]), None), step, None

  penalty = proximal_step.Penalty(
    learning_rate=learning_rate,
    alpha=alpha,
    groups=groups,
    weights=weights,
    clock=clock,
    stacked=stacked,
  )
  return proximal_step.transform(
    ProximalSgdState,
    penalty,
    start=start,
    advance=advance,
    prox=shrinkage.soft_thresholds,
  )


def _metrics(
  state: ProximalAdamState | ProximalSgdState, group: str
) -> dict[str, jax.Array]:
  return {
    f"learning_rate/{group}": state.learning_rate,
    "zero_groups": state.zero_groups,
  }


def _ahead(direction: Any, trace: Any, momentum: float) -> Any:
  return jax.tree.map(lambda g, m: g + momentum * m, direction, trace)


def _descend(direction: Any, rate: jax.Array) -> Any:
  return jax.tree.map(lambda d: -rate.astype(d.dtype) * d, direction)
