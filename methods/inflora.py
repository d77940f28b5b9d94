"""InfLoRA: adapters in directions that earlier tasks' inputs do not use.

Liang and Li, "InfLoRA: Interference-Free Low-Rank Adaptation for Continual
Learning", CVPR 2024, arXiv 2404.00228. The columns of H are the inputs of an
adapted layer, C = H H^T is their second moment, and P = M M^T is the projector
onto the space of earlier tasks' inputs, 0 before the first task:

  Equation (1), models/lora.py   h W + h lora_a lora_b
  Equations (6), (7), `outside`  H' = (I - P) H
  Equation (8), `design`         lora_a: the R leading left singular vectors of
                                 H', eigenvectors of (I - P) C (I - P)
  Equation (9), `loss`           cross entropy over the task's own classes
  Memory, `grow`                 M gets the fewest leading eigenvectors of
                                 (I - P) C (I - P), C of the trained model,
                                 for which tr(P C) >= epsilon_t tr(C)

The criterion of the memory is that of GPM (Saha et al., ICLR 2021). The paper
stores M or its complement, whichever is smaller (DualGPM: Liang and Li, CVPR
2023); the space is the same.

The released code differs. It decomposes C where the paper decomposes H, so its
energies are the squares of those here, and its lora_a has directions of
(I - P) C^2 (I - P). It divides lora_a by sqrt(3), which under Adam acts as a
learning rate smaller by that factor. After the first task its M has one
direction too few.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from libml import trees
from libml.devices import sharding
from libml.problems import losses
from libml.train import rehearsal
from libml.train.method import Method
from methods.parts import class_heads
from methods.parts import low_rank
from methods.parts import subspace
from models import initial
from models import lora

_HIGHEST = jax.lax.Precision.HIGHEST
# Shares of the energy below this are rounding errors of float32.
_ROUNDING = 1e-5
# In `outside`, eigenvalues of new directions are at most 1, those of directions
# in the space 2.
_OLD = 1.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfLoRA(Method):
  """Trains lora_b and the head; a fixed lora_a maps earlier tasks' inputs to 0.

  Attributes:
    epsilon: Share of the inputs' energy that is protected after the first task.
    final_epsilon: Value towards which that share grows: after task t of T,
      counted from 0, it is epsilon + (final_epsilon - epsilon) t / T, as in the
      released code.
    augment_moments: Whether C is computed on augmented images, as in that code.

  Raises:
    ValueError: On construction, for a share outside (0, 1] or a model without
      adapters.
  """

  epsilon: float = 0.95
  final_epsilon: float = 1.0
  augment_moments: bool = True

  def __post_init__(self):
    """Checks the fields."""
    for name in ("epsilon", "final_epsilon"):
      subspace.check_threshold(name, getattr(self, name))
    low_rank.check_model(self.model)

  def check(self, scenario):
    """Raises ValueError for tasks of one class, which masks all others."""
    class_heads.check_masked(scenario.stages)

  @property
  def rewrites(self):
    """The kernels, into which adapters are merged, and the designed lora_a."""
    return rf"{low_rank.kernels(self.model)}|.*/lora_a"

  def init_params(self, params, rng):
    """Draws a head, as the released code does."""
    return initial.draw_heads(params, rng, self.model.class_heads)

  def init_memory(self, params, trainable):
    """Holds P [D, D] of each block with adapters, and the classes.

    Raises:
      ValueError: The optimizer trains lora_a.
    """
    trained = trees.flatten(trainable)
    for name in trained:
      if name.endswith("/lora_a") and trained[name]:
        raise ValueError(
          f"InfLoRA sets {name} itself, and the optimizer must not train it; "
          "give the adapters' group in optimizer.groups the pattern "
          "'.*/lora_b'."
        )
    width = self.model.width
    return {
      **rehearsal.initial_memory(self.num_classes),
      "space": {
        block: jnp.zeros((width, width))
        for block in low_rank.blocks(params, self.model)
      },
    }

  def before_stage(self, state, stage, data):
    """Computes lora_a from the inputs of the stage's images (Equation 8)."""
    seen = self.see(state, stage, data)
    designed = data.compiled(
      "design", self.design_all, out_shardings=sharding.replicated(data.mesh)
    )(state.params, state.memory["space"], seen)
    return state.replace(
      params=trees.update(state.params, designed),
      memory=rehearsal.stage_memory(state.memory, stage, masked=True),
    )

  def loss(self, params, memory, batch, rng):
    """Cross entropy over the task's own classes."""
    outputs = self.apply(params, batch["train"], rng)
    logits = losses.mask_logits(outputs["logits"], memory["classes"])
    return self.problem.loss({**outputs, "logits": logits}, batch["train"])

  def after_stage(self, state, stage, data):
    """Adds the stage's inputs to the protected space; merges the adapters."""
    seen = self.see(state, stage, data)
    share = stage.index / self.num_stages
    epsilon = self.epsilon + (self.final_epsilon - self.epsilon) * share
    space = data.compiled(
      "grow", self.grow_all, out_shardings=sharding.replicated(data.mesh)
    )(state.memory["space"], seen, np.float32(1 - epsilon))
    params, _ = low_rank.merge(state.params, data, self.model)
    return state.replace(params=params, memory={**state.memory, "space": space})

  def see(self, state, stage, data):
    """Returns {block: C [D, D]} of the stage's images."""
    return data.accumulate(
      "second_moments",
      self.moments,
      state,
      *self.roles(stage),
      augment=self.augment_moments,
    )

  def moments(self, params, memory, batch):
    """Returns what one batch adds to each block's C."""
    del memory
    return subspace.second_moments(self.model, params, batch)

  def design_all(self, params, space, moments):
    """Returns lora_a of every adapted layer, by name."""
    rank, dtype = self.model.dense.rank, self.model.param_dtype
    designs = {
      block: design(moments[block], old, rank).astype(dtype)
      for block, old in space.items()
    }
    _, adapters = lora.split(params)
    named = low_rank.by_parameter(adapters, designs, "lora_a", model=self.model)
    return trees.flatten(named)

  def grow_all(self, space, moments, unprotected):
    """Returns P of each block after the stage, {block: [D, D]}."""
    return {
      block: grow(moments[block], old, unprotected)
      for block, old in space.items()
    }

  def predict(self, params, memory, batch):
    """Masks the classes that no stage has brought yet."""
    outputs = self.apply(params, batch)
    logits = losses.mask_logits(outputs["logits"], memory["seen"])
    return {"": {**outputs, "logits": logits}}


def outside(
  moment: jax.Array, space: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns directions outside a space, sorted by the energy of the inputs.

  With Q = I - P they are eigenvectors of Q C Q / tr(Q C Q) + 2 P. Without 2 P,
  directions in the space and directions without energy would both have
  eigenvalue 0; with it, those in the space come first, with eigenvalue 2.
  Division by tr(Q C Q) instead of tr(C) keeps the digits of small energies
  when 2 P is added.

  Args:
    moment: C, [D, D].
    space: P, [D, D].

  Returns:
    Eigenvalues [D], in falling order; eigenvectors [D, D]; tr(Q C Q) / tr(C),
    but at least _ROUNDING.
  """
  rest = jnp.eye(len(space)) - space
  moment /= jnp.maximum(jnp.trace(moment), 1e-30)
  left = moment
  for _ in range(2):  # rounding leaves a rest in the space after one pass
    left = jnp.matmul(rest, left, precision=_HIGHEST)
    left = jnp.matmul(left, rest, precision=_HIGHEST)
  share = jnp.maximum(jnp.trace(left), _ROUNDING)
  return *subspace.eigen(left / share + 2 * space), share


def design(moment: jax.Array, space: jax.Array, rank: int) -> jax.Array:
  """Returns lora_a [D, R]: orthonormal columns outside the space (Equation 8).

  A column is 0 where the inputs have no energy left in a further direction.

  Args:
    moment: C of the new task, [D, D].
    space: P of the old tasks, [D, D].
    rank: R.
  """
  values, vectors, share = outside(moment, space)
  old = jnp.sum(values > _OLD)
  values = jnp.roll(values, -old)[:rank]
  columns = jnp.roll(vectors, -old, axis=1)[:, :rank]
  # An eigenvector's sign is arbitrary: fix it, so that devices agree.
  peak = jnp.argmax(abs(columns), axis=0)[None, :]
  columns *= jnp.sign(jnp.take_along_axis(columns, peak, axis=0))
  reached = (values * share > _ROUNDING) & (values < _OLD)
  return jnp.where(reached[None, :], columns, 0.0)


def grow(
  moment: jax.Array, space: jax.Array, unprotected: jax.Array
) -> jax.Array:
  """Returns P [D, D] with the fewest further directions that reach epsilon.

  Args:
    moment: C of the task just learned, [D, D].
    space: P of the old tasks, [D, D].
    unprotected: 1 - epsilon, the share of tr(C) that may stay outside.
  """
  values, vectors, share = outside(moment, space)
  # Sum from the smallest value up: precise where epsilon is near 1.
  left = jnp.cumsum(values[::-1])[::-1] * share
  most = jnp.maximum(unprotected, _ROUNDING)
  keep = (left > most) | (values > _OLD)
  return subspace.projector(vectors, keep)
