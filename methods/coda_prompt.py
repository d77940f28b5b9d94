"""CODA-Prompt: prompts mixed from components; each task adds components.

Smith et al., "CODA-Prompt: COntinual Decomposed Attention-based Prompting for
Rehearsal-Free Continual Learning", CVPR 2023. Let q be the class token of the
model without prompts, n the number of components that each task adds, and *
the elementwise product. In task t the key and value prefix of each prompted
layer is

  P = sum_{m < (t + 1) n} cos(q * a_m, k_m) p_m

Components m < t n, those of earlier tasks, are not trained. The cross entropy
masks the classes of other tasks. V has the vectors p, k or a of a layer as
rows; the sum runs over the layers and these three kinds:

  loss = CE(f(x; P), y) + ortho_loss * sum mean (V V^T - I)^2

The defaults are those of the released code: it starts each task's components
orthonormal and has ortho_loss 0, where the paper starts the whole pool
orthonormal. On several GPUs the released code sums the penalty over the
devices; this implementation does not.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from libml.problems import losses
from libml.train import rehearsal
from libml.train.method import Method
from libml.train.method import readings
from methods.parts import class_heads
from models import coda
from models import initial


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodaPrompt(Method):
  """A pool of components; each task trains only the components that it adds.

  Attributes:
    e_layers: Layers that get a prefix.
    pool_size: M, the number of components of a layer. Each task gets M // (the
      number of tasks) of them; the remainder is not used.
    length: Rows of a prompt: half of them keys, half values.
    ortho_loss: Weight of the penalty on components that are not orthonormal.
    mask_classes: Whether training masks the classes of other tasks.

  Raises:
    ValueError: On construction, for options that do not fit together.
  """

  e_layers: tuple[int, ...] = (0, 1, 2, 3, 4)
  pool_size: int = 100
  length: int = 8
  ortho_loss: float = 0.0
  mask_classes: bool = True

  rewrites = r"components/.*"
  rehearses = True
  smoke = {"pool_size": 12}

  @classmethod
  def fewest_blocks(cls, options):
    """Returns the number of blocks up to the last one with a prefix."""
    return 1 + max(options["e_layers"], default=0)

  def __post_init__(self):
    """Checks the options."""
    width, depth = self.model.width, self.model.depth
    if not self.num_stages <= self.pool_size <= width:
      raise ValueError(
        f"method.pool_size={self.pool_size} must be {self.num_stages} (one "
        f"component for each task) to {width} (the model's width, because "
        "components start orthogonal)."
      )
    if self.length < 2 or self.length % 2:
      raise ValueError(
        f"method.length={self.length} must be even and above 0: half of a "
        "prompt's rows are keys and half are values."
      )
    layers = set(self.e_layers)
    distinct = 0 < len(layers) == len(self.e_layers)
    if not distinct or not layers <= set(range(depth)):
      raise ValueError(
        f"method.e_layers={self.e_layers} must be one or more distinct layers, "
        f"counted from 0 to {depth - 1}."
      )
    if self.ortho_loss < 0:
      raise ValueError(
        f"method.ortho_loss={self.ortho_loss} must be 0 or more."
      )

  def check(self, scenario: Any) -> None:
    """Raises ValueError for tasks of one class that masks all others."""
    if self.mask_classes:
      class_heads.check_masked(scenario.stages)

  @property
  def per_task(self) -> int:
    """n, the number of components that a task adds to each layer."""
    return self.pool_size // self.num_stages

  def init_params(self, params: Any, rng: jax.Array) -> Any:
    """Draws a head, and adds components that are zero to the parameters."""
    components = coda.empty(
      len(self.e_layers),
      self.pool_size,
      length=self.length,
      width=self.model.width,
      dtype=self.model.param_dtype,
    )
    drawn = initial.draw_heads(params, rng, self.model.class_heads)
    return {**drawn, "components": components}

  def init_memory(self, params: Any, trainable: Any) -> Any:
    """Holds the task and its classes.

    Raises:
      ValueError: The optimizer trains the backbone, which computes the queries.
    """
    if any(jax.tree.leaves([trainable[b] for b in self.model.backbone])):
      raise ValueError(
        "CODA-Prompt computes each image's query with the pretrained backbone, "
        "which the optimizer must not train; set optimizer.backbone=None."
      )
    del params
    return rehearsal.initial_memory(self.num_classes)

  def before_stage(self, state, stage, data):
    """Draws the task's components and stores the task in the memory."""
    components = data.compiled("begin_components", self.begin)(
      state.params["components"], state.rng, np.int32(stage.index)
    )
    return state.replace(
      params={**state.params, "components": components},
      memory=rehearsal.stage_memory(
        state.memory, stage, masked=self.mask_classes
      ),
    )

  def begin(self, components: Any, rng: jax.Array, task: jax.Array) -> Any:
    """Returns the components with which a task starts."""
    draws = coda.draw(components, rng, self.per_task)
    return coda.begin(components, draws, task * self.per_task)

  def find_query(self, params: Any, image: jax.Array) -> jax.Array:
    """Returns the model's class tokens without prompts, [B, D], no gradient."""
    tokens = self.model.apply(
      {"params": params}, image, rows=slice(1), method="encode"
    )
    return jax.lax.stop_gradient(tokens[:, 0])

  def used(self, memory: Any) -> jax.Array:
    """Returns which components belong to the tasks so far, bool[M]."""
    number = jnp.arange(self.pool_size)
    return number < (memory["task"] + 1) * self.per_task

  def prompts(self, components: Any, memory: Any, query: jax.Array) -> Any:
    """Returns the model's prompts for queries [B, D]."""
    mixed = coda.mix(components, query, self.used(memory))
    return coda.prefixes(mixed, self.e_layers, self.model.num_heads)

  def loss(self, params, memory, batch, rng):
    """Masked cross entropy, and the penalty."""
    rows = rehearsal.join(batch, memory, self.rehearsal.mask)
    new = jnp.arange(self.pool_size) >= memory["task"] * self.per_task
    components = coda.hold(params["components"], new)
    query = self.find_query(params, rows.batch["image"])
    prompts = self.prompts(components, memory, query)
    outputs = self.apply(params, {**rows.batch, "prompts": prompts}, rng)
    logits = losses.mask_logits(outputs["logits"], rows.allowed)
    loss, parts = self.problem.loss({**outputs, "logits": logits}, rows.batch)
    if not self.ortho_loss:
      return loss, parts
    penalty = coda.penalty(components, self.used(memory))
    return loss + self.ortho_loss * penalty, {**parts, "penalty": penalty}

  def precompute(self, params, memory, batch):
    """Returns the queries [B, D]: the frozen model's, so they never change."""
    del memory
    return {"query": self.find_query(params, batch["image"])}

  def predict(self, params, memory, batch):
    """Mixes prompts for each image from all components so far."""
    query = batch.get("query")
    if query is None:
      query = self.find_query(params, batch["image"])
    prompts = self.prompts(params["components"], memory, query)
    return readings(self.apply(params, {**batch, "prompts": prompts}))
