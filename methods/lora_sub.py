"""LoRA-Sub-DRS: adapters that move inside a drift-resistant subspace.

Liu and Chang, "LoRA Subtraction for Drift-Resistant Space in Exemplar-Free
Continual Learning", CVPR 2025.

W are the pretrained kernels, S is the sum of the adapters of earlier tasks, A B
the adapter of this task, U_A and U_B its Adam updates, and V the k leading
eigenvectors of the second moment of a block's attention inputs under W - S:

  loss = CE(task's columns, y) + triplet * ATL(f(x; W + S + A B), y, prototypes)
  A <- A + P U_A,  B <- B + U_B P,  P = V V^T (/ sqrt(k)), from the second task

After a task A B is added to S, and the prototype of each new class is its mean
feature. A test image gets the class whose prototype has the largest cosine.
"""

import dataclasses
import functools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np

from libml import vectors
from libml.problems import losses
from libml.problems import prototypes as prototypes_lib
from libml.train.method import Method
from methods.parts import class_heads
from methods.parts import class_means
from methods.parts import low_rank
from methods.parts import subspace
from models import initial
from models import lora

_LOG = logging.getLogger("palimpsest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSub(Method):
  """Projected low-rank adapters in the attention; prototypes classify.

  The parameter group of the adapters projects the update (project="update", as
  in the released code) or the gradient (project="gradient", as in the paper).
  The kernels in the parameters are W + S.

  Attributes:
    threshold: Share of the inputs' energy that V holds, in (0, 1].
    unit_norm: Whether P is divided by sqrt(k), as in the released code; in the
      paper it is not.
    triplet: Weight of the augmented triplet loss ATL (the paper's lambda).
    margin: Margin of that loss.
    lora_b: Initial B of a task: "zeros", or "sparse" (the authors' first code).
    augment_moments: Whether V is computed on augmented images, as in the
      released code.
    augment_prototypes: Whether prototypes are means of augmented images, as in
      LibContinual.
    first_epochs: Epochs of the first task, 1 to `epochs`; the schedule of the
      learning rate stays as long as `epochs`. None: `epochs`.
  """

  threshold: float = 0.99
  unit_norm: bool = False
  triplet: float = 0.05
  margin: float = 1.0
  lora_b: str = "zeros"
  augment_moments: bool = True
  augment_prototypes: bool = False
  first_epochs: int | None = None

  smoke = {"first_epochs": 1}

  def __post_init__(self):
    subspace.check_threshold("threshold", self.threshold)
    for name in ("triplet", "margin"):
      if not 0 <= getattr(self, name) < math.inf:
        raise ValueError(
          f"method.{name}={getattr(self, name)} must be a finite number of at "
          "least 0."
        )
    first = self.epochs if self.first_epochs is None else self.first_epochs
    if not 1 <= first <= self.epochs:
      raise ValueError(
        f"method.first_epochs={self.first_epochs} must be 1 to epochs="
        f"{self.epochs}, the length of the learning rate's schedule, or None "
        "for all of them."
      )
    lora.check_start(self.lora_b)
    low_rank.check_model(self.model)

  @property
  def rewrites(self):
    """The kernels, into which adapters are merged."""
    return low_rank.kernels(self.model)

  def check(self, scenario):
    """Raises ValueError if a class comes twice: prototypes are final."""
    class_heads.check_new_classes(scenario)

  def init_params(self, params, rng):
    """Draws a head; each task draws its adapters when it starts."""
    return initial.draw_heads(params, rng, self.model.class_heads)

  def init_memory(self, params, trainable):
    """Holds S, the prototypes, and for each block P [D, D] and its rank k."""
    low_rank.check_trained(trainable)
    blocks = low_rank.blocks(params, self.model)
    width = self.model.width
    sums = jax.eval_shape(
      functools.partial(lora.deltas, scale=self.model.lora_scale), params
    )
    return {
      "classes": jnp.zeros(self.num_classes, bool),
      "sums": jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sums),
      # The first task trains in all directions.
      "projectors": {block: jnp.eye(width) for block in blocks},
      "kept": {block: jnp.int32(width) for block in blocks},
      "prototypes": jnp.zeros((self.num_classes, width)),
      "known": jnp.zeros(self.num_classes, bool),
    }

  def before_stage(self, state, stage, data):
    """Computes P under W - S, from the second task on; draws new adapters."""
    memory = {
      **state.memory,
      "classes": jnp.isin(
        jnp.arange(self.num_classes), np.asarray(stage.classes["learn"])
      ),
    }
    if stage.index:
      seen = data.accumulate(
        "second_moments",
        self.moments,
        state,
        *self.roles(stage),
        augment=self.augment_moments,
      )
      moments = {block: seen[block] for block in memory["projectors"]}
      memory.update(data.compiled("projectors", self.project)(moments))
      kept = jax.device_get(memory["kept"])
      _LOG.info(
        "%s: directions kept a block: %s.",
        stage.name,
        ", ".join(
          str(kept[block])
          for block in low_rank.blocks(state.params, self.model)
        ),
      )
    params = low_rank.restart(state, data, lora_b=self.lora_b)
    return state.replace(params=params, memory=memory)

  def moments(self, params, memory, batch):
    """Returns second moments under W - S, computed as (W + S) - 2 S."""
    params = lora.subtract(params, memory["sums"], times=2.0)
    return subspace.second_moments(self.model, params, batch)

  def project(self, moments):
    """Returns {"projectors": {block: P}, "kept": {block: k}}."""
    projectors, kept = {}, {}
    for block, moment in moments.items():
      values, vectors = subspace.eigen(moment)
      keep = subspace.leading(values, self.threshold)
      projectors[block] = subspace.projector(
        vectors, keep, unit_norm=self.unit_norm
      )
      kept[block] = jnp.sum(keep, dtype=jnp.int32)
    return {"projectors": projectors, "kept": kept}

  def extra_args(self, memory):
    """Projects A's update from the left and B's from the right, by block."""
    arrays = memory["sums"], memory["projectors"]
    return {
      side: low_rank.by_parameter(*arrays, leaf, model=self.model)
      for side, leaf in (("left", "lora_a"), ("right", "lora_b"))
    }

  def stage_epochs(self, stage):
    """Returns `first_epochs` for the first task, `epochs` for all others."""
    if stage.index or self.first_epochs is None:
      return self.epochs
    return self.first_epochs

  def loss(self, params, memory, batch, rng):
    """Cross entropy over the task's columns, and the augmented triplet loss."""
    batch = batch["train"]
    outputs = self.apply(params, batch, rng)
    logits = losses.mask_logits(outputs["logits"], memory["classes"])
    loss, parts = self.problem.loss({**outputs, "logits": logits}, batch)
    label = batch["label"]
    triplet = augmented_triplet(
      outputs["features"],
      label if label.ndim == 1 else jnp.argmax(label, axis=-1),
      memory["prototypes"],
      memory["known"],
      margin=self.margin,
    )
    kept = jnp.stack(list(memory["kept"].values()))
    return loss + self.triplet * triplet, {
      **parts,
      "triplet": triplet,
      "kept_directions": kept.astype(jnp.float32).mean(),
    }

  def after_stage(self, state, stage, data):
    """Adds A B to S; computes the prototype of each new class."""
    params, changes = low_rank.merge(state.params, data, self.model)
    memory = {
      **state.memory,
      "sums": jax.tree.map(jnp.add, state.memory["sums"], changes),
    }
    state = state.replace(params=params, memory=memory)
    roles, augment = self.roles(stage), self.augment_prototypes
    seen = class_means.sums(self, state, data, *roles, augment=augment)
    new = seen["counts"] > 0
    means = prototypes_lib.means(seen["sums"], seen["counts"])
    known = {
      "prototypes": jnp.where(new[:, None], means, memory["prototypes"]),
      "known": memory["known"] | new,
    }
    return state.replace(memory={**memory, **known})

  def predict(self, params, memory, batch):
    """Logits are the cosines to the prototypes of all classes so far."""
    outputs = self.apply(params, batch)
    logits = prototypes_lib.cosine_logits(
      outputs["features"], memory["prototypes"], memory["known"]
    )
    return {"": {**outputs, "logits": logits}}


def augmented_triplet(
  features: jax.Array,
  label: jax.Array,
  prototypes: jax.Array,
  known: jax.Array,
  *,
  margin: float,
) -> jax.Array:
  """Returns the augmented triplet loss of LoRA-Sub-DRS, float32[].

  Scales features [B, D] and prototypes [C, D] to unit length and calls
  `unit_triplet`. Known prototypes must not be zero.
  """
  return unit_triplet(
    vectors.unit(features.astype(jnp.float32)),
    label,
    vectors.unit(prototypes.astype(jnp.float32)),
    known,
    margin=margin,
  )


def unit_triplet(
  features: jax.Array,
  label: jax.Array,
  prototypes: jax.Array,
  known: jax.Array,
  *,
  margin: float,
) -> jax.Array:
  """Returns the augmented triplet loss of points on the unit sphere.

  Let a_i be the largest distance of example i to an example of its class, i
  included, and b_i its smallest distance to an example of another class or to a
  known prototype:

    mean_i max(0, a_i - b_i + margin)

  Without another class and without a prototype the term of i is 0. Tied
  distances share the gradient. Under jit the batch is the global one.

  Args:
    features: [B, D], of unit length.
    label: int32 [B].
    prototypes: [C, D], of unit length where known; they get no gradient.
    known: bool [C], the classes that have a prototype.
    margin: Margin of the hinge.
  """
  f, p = features, jax.lax.stop_gradient(prototypes)
  square = jnp.sum(f**2, axis=-1)
  similarity = jnp.matmul(f, f.T, precision=jax.lax.Precision.HIGHEST)
  distance = _root(square[:, None] + square[None, :] - 2 * similarity)  # [B, B]
  same = label[:, None] == label[None, :]
  hardest = jnp.max(jnp.where(same, distance, -jnp.inf), axis=1)
  others = jnp.min(jnp.where(same, jnp.inf, distance), axis=1)
  nearest = jnp.where(jnp.all(same, axis=1), hardest + margin, others)
  similarity = jnp.matmul(f, p.T, precision=jax.lax.Precision.HIGHEST)
  distance = _root(
    square[:, None] + jnp.sum(p**2, axis=-1)[None, :] - 2 * similarity
  )  # [B, C]
  old = jnp.min(jnp.where(known[None, :], distance, jnp.inf), axis=1)
  return jnp.mean(jax.nn.relu(hardest - jnp.minimum(nearest, old) + margin))


def _root(square: jax.Array) -> jax.Array:
  # Clamp before the root, because its gradient at 0 is infinite.
  return jnp.sqrt(jnp.maximum(square, 1e-12))
