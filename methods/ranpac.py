"""RanPAC: ridge regression on random features of a frozen model.

McDonnell et al., "RanPAC: Random Projections and Pre-trained Models for
Continual Learning", NeurIPS 2023, without its first-session PETL training (row
"no PETL" of its ablation). f [D] is the feature of an image and y [C] its
one-hot label; sums run over the images of all tasks so far:

  h = relu(f W), W [D, M] ~ N(0, 1), drawn once
  G = sum h h^T [M, M]  (Gram matrix),  C = sum h y^T [M, C]  (class prototypes)
  logits = h (G + ridge I)^-1 C
"""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import linalg

from libml import hashing
from libml.problems import losses
from libml.train.method import Method

_LOG = logging.getLogger("palimpsest")

# One image in five is held out to choose the ridge, as in the released code.
_FOLDS = 5
# Relative difference below which two held-out errors count as equal.
_TIE = 1e-2


@dataclasses.dataclass(frozen=True, kw_only=True)
class RanPAC(Method):
  """Sums Gram matrices over all images; solves for the weights after a stage.

  To choose the ridge, weights are fitted to four fifths of the training images
  of all tasks so far, and the squared error is measured on the held-out fifth.
  The largest ridge within 1 % of the smallest error is taken, and the weights
  are then fitted to all images with it. The released code chooses on the images
  of the newest task alone; this choice takes a second Gram matrix.

  Memory and checkpoints hold two float32 Gram matrices: 800 MB at M = 10,000.
  Solving takes M^3 / 3 operations for each ridge and stage. Several devices sum
  both matrices after every batch.

  Attributes:
    projection_dim: M.
    ridges: Ridges to choose from.
  """

  projection_dim: int = 10_000
  ridges: tuple[float, ...] = tuple(10.0**n for n in range(-8, 9))

  # W never changes, but drawing it again may round differently on another
  # device. Store it in checkpoints, so that a resumed run reads the same W.
  rewrites = r"random_projection/.*"
  # With more random features than images, results depend on the device count.
  smoke = {"projection_dim": 8}

  def __post_init__(self):
    if self.projection_dim < 1:
      raise ValueError(
        f"method.projection_dim={self.projection_dim} must be at least 1; the "
        "paper takes 10000."
      )
    if not self.ridges or not all(0 < r < np.inf for r in self.ridges):
      raise ValueError(
        f"method.ridges={self.ridges} must be one or more finite numbers above "
        "0, such as (1.0, 100.0)."
      )

  def init_params(self, params, rng):
    """Adds W [D, M] as random_projection/kernel."""
    shape = (self.model.width, self.projection_dim)
    kernel = jax.random.normal(rng, shape, jnp.float32)
    return {**params, "random_projection": {"kernel": kernel}}

  def init_memory(self, params, trainable):
    """Holds the sums of fitted and held-out images, weights [M, C], ridge."""
    del params, trainable
    size, classes = self.projection_dim, self.num_classes

    def zeros():  # called twice: a buffer cannot be donated twice
      return {
        "gram": jnp.zeros((size, size)),
        "prototypes": jnp.zeros((size, classes)),
        "counts": jnp.zeros(classes),
      }

    return {
      "fit": zeros(),
      "held_out": zeros(),
      "weights": jnp.zeros((size, classes)),
      "ridge": jnp.zeros(()),
    }

  def rounds(self, stage, data):
    """Trains nothing."""
    del stage, data
    return ()

  def random_features(self, params, features):
    """Maps features [B, D] to h [B, M]."""
    kernel = params["random_projection"]["kernel"]
    return jax.nn.relu(_matmul(features.astype(jnp.float32), kernel))

  def part_sums(self, params, memory, batch):
    """Returns what one batch adds to the sums "fit" and "held_out"."""
    del memory
    hidden = self.random_features(params, self.apply(params, batch)["features"])
    member = jax.nn.one_hot(batch["label"], self.num_classes)  # [B, C]
    held_out = is_held_out(batch["image"])

    def sums(rows):
      kept = jnp.where(rows[:, None], hidden, 0.0)
      return {
        "gram": _matmul(kept.T, kept),
        "prototypes": _matmul(kept.T, member),
        "counts": jnp.where(rows[:, None], member, 0.0).sum(axis=0),
      }

    return {
      "fit": sums(batch["mask"] & ~held_out),
      "held_out": sums(batch["mask"] & held_out),
    }

  def solve(self, memory, added):
    """Returns the memory with a stage's sums added and the new solution."""
    parts = {name: memory[name] for name in added}
    parts = jax.tree.map(jnp.add, parts, added)
    weights, ridge = fit_weights(**parts, ridges=self.ridges)
    return {**parts, "weights": weights, "ridge": ridge}

  def after_stage(self, state, stage, data):
    """Adds the stage's images to the sums and fits the weights to all.

    Raises:
      FloatingPointError: No ridge has finite weights.
    """
    added = data.accumulate("part_sums", self.part_sums, state, stage.goal)
    # Donate the sums, or XLA keeps a second pair of Gram matrices.
    solve = data.compiled("solve_ridge", self.solve, donate_argnums=1)
    memory = solve(state.memory, added)
    ridge = float(memory["ridge"])
    if not np.isfinite(ridge):
      raise FloatingPointError(
        f"No ridge in method.ridges={self.ridges} gives finite weights. Add "
        "larger ridges; if that does not help, the features are not finite."
      )
    _LOG.info("Ridge after stage %d: %g.", stage.index + 1, ridge)
    return state.replace(memory=memory)

  def precompute(self, params, memory, batch):
    """Returns the features [B, D]; h is M / D times as large and cheap."""
    del memory
    return {"features": self.apply(params, batch)["features"]}

  def predict(self, params, memory, batch):
    """Logits are h times the weights; classes without images are masked."""
    hidden = self.random_features(params, batch["features"])
    known = memory["fit"]["counts"] + memory["held_out"]["counts"] > 0
    logits = _matmul(hidden, memory["weights"])
    return {"": {"logits": losses.mask_logits(logits, known)}}


def is_held_out(image: jax.Array) -> jax.Array:
  """Returns which images of [B, H, W, 3] are held out, bool [B]: a fifth.

  The choice depends on the pixels alone, so that an image that comes in two
  stages is not fitted in one and held out in the other.
  """
  bits = jax.lax.bitcast_convert_type(image.astype(jnp.float32), jnp.uint32)
  bits = bits.reshape(len(image), -1)
  place = hashing.scramble(jnp.arange(bits.shape[1], dtype=jnp.uint32))
  # Integer sums do not depend on their order, so all devices agree.
  total = hashing.scramble(bits + place[None, :]).sum(axis=1, dtype=jnp.uint32)
  return hashing.scramble(total) % np.uint32(_FOLDS) == 0


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  # By default GPUs and TPUs round the factors to 10 and 7 bits.
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def ridge_weights(
  gram: jax.Array, prototypes: jax.Array, ridge: jax.Array
) -> jax.Array:
  """Returns (G + ridge I)^-1 C, [M, C]; NaN where that is not definite.

  Args:
    gram: G [M, M].
    prototypes: C [M, C], sums of h y^T.
    ridge: float32[].
  """
  regular = gram + ridge * jnp.eye(len(gram))
  return linalg.cho_solve(linalg.cho_factor(regular, lower=True), prototypes)


def held_out_error(
  weights: jax.Array, held_out: dict[str, jax.Array]
) -> jax.Array:
  """Returns the mean over images of |y - h weights|^2; inf for invalid weights.

  With n images and |y| = 1 it is (n - 2 <weights, C> + <weights, G weights>) /
  n, so the sums suffice and no image is read again.

  Args:
    weights: [M, C].
    held_out: gram [M, M], prototypes [M, C], counts [C] of the n images.
  """
  count = held_out["counts"].sum()
  fitted = _matmul(held_out["gram"], weights)
  squares = jnp.sum(weights * (fitted - 2 * held_out["prototypes"])) + count
  # 0 or less means that rounding exceeds the error; NaN fails the test, too.
  return jnp.where(squares > 0, squares / jnp.maximum(count, 1), jnp.inf)


def fit_weights(
  fit: dict[str, jax.Array],
  held_out: dict[str, jax.Array],
  ridges: tuple[float, ...],
) -> tuple[jax.Array, jax.Array]:
  """Returns the weights [M, C] fitted to all images, and their ridge.

  The ridge is the largest one if no image is held out or all errors are
  infinite. Where its weights for all images are not finite, the next larger
  ridge is tried; the returned ridge is NaN if none is left.

  Args:
    fit: gram [M, M], prototypes [M, C], counts [C] of the fitted images.
    held_out: The same of the held-out images.
    ridges: Ridges to choose from.
  """
  grid = jnp.array(sorted(ridges, reverse=True), jnp.float32)
  # Smaller ridges are lost in the rounding of the Gram matrix.
  least = jnp.finfo(jnp.float32).eps * jnp.trace(fit["gram"])

  def error(ridge):
    weights = ridge_weights(fit["gram"], fit["prototypes"], ridge)
    return held_out_error(weights, held_out)

  def attempt(ridge):
    return jax.lax.cond(ridge > least, error, lambda _: jnp.inf, ridge)

  def solve(place):
    gram = fit["gram"] + held_out["gram"]
    prototypes = fit["prototypes"] + held_out["prototypes"]
    return ridge_weights(gram, prototypes, grid[place])

  # Solve in turn: in parallel, each ridge would need its own matrices.
  errors = jax.lax.map(attempt, grid)
  best = jnp.argmax(errors <= errors.min() * (1 + _TIE))
  place, weights = jax.lax.while_loop(
    lambda carry: (carry[0] > 0) & ~jnp.isfinite(carry[1]).all(),
    lambda carry: (carry[0] - 1, solve(carry[0] - 1)),
    (best, solve(best)),
  )
  finite = jnp.isfinite(weights).all()
  return weights, jnp.where(finite, grid[place], jnp.nan)
