"""Three blocks and their gradients, for tests of the proximal step."""

import jax
import numpy as np
import optax

from libml import trees
from libml.optim import group_lasso
from libml.optim import proximal

_RNG = np.random.default_rng(0)
BY_BLOCK = group_lasso.by_pattern(r"(block_\d+)/.*")


def leaf(*shape, scale=1.0):
  """Returns normal numbers; of NumPy, as a child has no devices yet."""
  return np.float32(scale * _RNG.normal(size=shape))


def tree(*scales):
  """Returns blocks of the given sizes, and a head without a group."""
  blocks = {
    f"block_{i}": {
      "a": leaf(8, 3, scale=scale),
      "dense": {"b": leaf(3, 8, scale=scale)},
    }
    for i, scale in enumerate(scales)
  }
  return {**blocks, "head": leaf(8)}


# Block 2 and its gradients are small, so a small alpha makes it alone zero.
PARAMS = tree(1.0, 0.5, 0.02)
GRADS = [tree(1.0, 1.0, 1e-3) for _ in range(4)]


def lasso(rate=0.1, alpha=0.05, **options):
  return proximal.proximal_group_lasso(rate, alpha, BY_BLOCK, **options)


def run(tx, params=PARAMS, grads=GRADS, **extra):
  """Returns parameters and states after each update."""
  tx = optax.with_extra_args_support(tx)
  state, seen = tx.init(params), []

  @jax.jit
  def step(grad, state, params, extra):
    updates, state = tx.update(grad, state, params, **extra)
    return optax.apply_updates(params, updates), state

  for grad in grads:
    params, state = step(grad, state, params, extra)
    seen.append((params, state))
  return seen


def assert_same(ours, theirs, **tolerance):
  """Compares trees by name, in float64."""
  ours, theirs = trees.flatten(ours), trees.flatten(theirs)
  assert ours.keys() == theirs.keys()
  for name, value in ours.items():
    np.testing.assert_allclose(
      np.float64(value), np.float64(theirs[name]), err_msg=name, **tolerance
    )


def all_zero(tree):
  return not any(np.any(leaf) for leaf in jax.tree.leaves(tree))
