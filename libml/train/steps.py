"""The steps of a run: train, begin a stage, evaluate."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from libml import optim
from libml.train.train_state import TrainState


def make_train_step(
  loss: Callable[..., Any],
  extra_args: Callable[[Any], Mapping[str, Any]],
  optimizer: optim.Optimizer,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
  """Returns a training step: loss, gradient, transform, update.

  Args:
    loss: (params, memory, batch, rng) -> (scalar, {name: scalar}).
    extra_args: memory -> arrays for the optimizer's transforms.
    optimizer: Its transform, and which parameters are trained.

  Returns:
    (state, batch) -> (state, {metric: scalar}).
  """

  def step(state, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    (value, parts), grads = jax.value_and_grad(loss, has_aux=True)(
      state.params, state.memory, batch, rng
    )
    # Nothing below reads gradients of frozen leaves, so XLA removes them.
    updates, opt_state = optimizer.tx.update(
      grads,
      state.opt_state,
      state.params,
      epoch=(state.step + 1) / state.steps_per_epoch,
      **extra_args(state.memory),
    )
    params = jax.tree.map(
      lambda p, u, trained: (p + u).astype(p.dtype) if trained else p,
      state.params,
      updates,
      optimizer.groups.trainable(state.params),
    )
    state = state.replace(
      step=state.step + 1, params=params, opt_state=opt_state
    )
    return state, {"loss": value, **parts, **optim.last_metrics(opt_state)}

  return step


def first_state(
  method: Any, optimizer: optim.Optimizer, params: Any, rng: jax.Array
) -> TrainState:
  """Returns the state before the first stage.

  Args:
    method: Initializes the memory.
    optimizer: Knows which parameters are trained; initializes its moments.
    params: All parameters, those that the method adds included.
    rng: Typed key of the state.
  """
  trainable = optimizer.groups.trainable(params)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    steps_per_epoch=jnp.ones((), jnp.int32),
    params=params,
    opt_state=jax.jit(optimizer.tx.init)(params),
    memory=method.init_memory(params, trainable),
    rng=rng,
  )


def begin_stage(
  state: TrainState,
  index: jax.Array,
  steps_per_epoch: jax.Array,
  run_rng: jax.Array,
  *,
  tx: Any,
  restart: bool,
) -> TrainState:
  """Returns the state at a stage's first step.

  Args:
    state: After the method's `before_stage`.
    index: int32[], folded into the run's key.
    steps_per_epoch: int32[], for the schedules.
    run_rng: Typed key of the run.
    tx: The optimizer's transform.
    restart: Whether the moments start again from zero.
  """
  return state.replace(
    step=jnp.zeros((), jnp.int32),
    steps_per_epoch=jnp.asarray(steps_per_epoch, jnp.int32),
    opt_state=tx.init(state.params) if restart else state.opt_state,
    rng=jax.random.fold_in(run_rng, index),
  )


def make_evaluate_step(
  predict: Callable[..., Any],
  measure: Callable[..., Any],
  observe: Callable[..., Any],
) -> Callable[..., Any]:
  """Returns the step that measures one batch of a test set.

  Args:
    predict: (params, memory, batch) -> {reading: outputs}.
    measure: (outputs, batch) -> measures (`Problem.measure`).
    observe: ({reading: outputs}, batch) -> {name: sums} (`Method.observe`).

  Returns:
    (params, memory, batch, constants) -> {"measures": {reading: measures},
    "observed": {name: sums}}; constants are those of `Problem.constants`.
  """

  def evaluate(params, memory, batch, constants):
    readings = predict(params, memory, batch)
    batch = {**batch, **constants}
    return {
      "measures": {
        name: measure(outputs, batch) for name, outputs in readings.items()
      },
      "observed": observe(readings, batch),
    }

  return evaluate
