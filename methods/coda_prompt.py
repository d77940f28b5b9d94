"""CODA-Prompt: prompts mixed from components, of which each task adds some.

Smith et al., "CODA-Prompt: COntinual Decomposed Attention-based Prompting for
Rehearsal-Free Continual Learning", CVPR 2023. With q the class token of the
plain model and n components a task, in each prompted layer of task t

  P = sum_{m < (t + 1) n} cos(q * a_m, k_m) p_m

is the key and value prefix; components m < t n are constants. With the classes
of other tasks masked and V the rows of p, k and a:

  loss = CE(f(x; P), y) + ortho_loss * sum mean (V V^T - I)^2

Defaults are those of the released code, which starts each task's components
orthonormal and has ortho_loss 0; the paper starts the whole pool so. Its
multi-GPU runs sum the penalty over devices; ours do not.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodaPrompt(Method):
  """A pool of components; each task trains its own beside the earlier ones.

  Attributes:
    e_layers: Layers that get a prefix.
    pool_size: M, the components of a layer, divided among all tasks; what the
      division leaves is never used.
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
    """As many as there are up to the last one with a prefix."""
    return 1 + max(options["e_layers"], default=0)

  def __post_init__(self):
    """Checks the options."""
    width, depth = self.model.width, self.model.depth
    if not self.num_stages <= self.pool_size <= width:
      raise ValueError(
        f"pool_size={self.pool_size} must be {self.num_stages} to {width}: a "
        "component for each task, and no more than the model's width, in which "
        "keys are orthogonal."
      )
    if self.length < 2 or self.length % 2:
      raise ValueError(
        f"length={self.length} must be even and above 0: half of a prompt's "
        "rows are keys and half are values."
      )
    layers = set(self.e_layers)
    distinct = 0 < len(layers) == len(self.e_layers)
    if not distinct or not layers <= set(range(depth)):
      raise ValueError(
        f"e_layers={self.e_layers} must be distinct layers, 0 to {depth - 1}, "
        "and at least one."
      )
    if self.ortho_loss < 0:
      raise ValueError(f"ortho_loss={self.ortho_loss} must be 0 or more.")

  @property
  def per_task(self) -> int:
    """n, the components that a task adds to each layer."""
    return self.pool_size // self.num_stages

  def init_params(self, params: Any, rng: jax.Array) -> Any:
    """Draws a head, and adds empty components beside the model."""
    components = coda.empty(
      len(self.e_layers),
      self.pool_size,
      length=self.length,
      width=self.model.width,
      dtype=self.model.param_dtype,
    )
    drawn = class_heads.draw(params, rng, self.model.class_heads)
    return {**drawn, "components": components}

  def init_memory(self, params: Any, trainable: Any) -> Any:
    """Holds the task and its classes.

    Raises:
      ValueError: The optimizer trains the model, by which images are queried.
    """
    if any(jax.tree.leaves([trainable[b] for b in self.model.backbone])):
      raise ValueError(
        "This method queries each image by the class token of the pretrained "
        "model, which must stay as it is; set optimizer.backbone=None."
      )
    del params
    return rehearsal.initial_memory(self.num_classes)

  def before_stage(self, state, stage, data):
    """Draws the task's components, and writes the task down."""
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
    """Returns the class tokens of the plain model, [B, D], no gradient."""
    tokens = self.model.apply(
      {"params": params}, image, rows=slice(1), method="encode"
    )
    return jax.lax.stop_gradient(tokens[:, 0])

  def used(self, memory: Any) -> jax.Array:
    """Returns the components of all tasks so far, bool[M]."""
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
    """The query never changes: it is the frozen model's."""
    del memory
    return {"query": self.find_query(params, batch["image"])}

  def predict(self, params, memory, batch):
    """Mixes prompts for each image from all components so far."""
    query = batch.get("query")
    if query is None:
      query = self.find_query(params, batch["image"])
    prompts = self.prompts(params["components"], memory, query)
    return readings(self.apply(params, {**batch, "prompts": prompts}))
