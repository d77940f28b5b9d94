"""Prompts in front of a frozen transformer: L2P and DualPrompt.

L2P: Wang et al., "Learning to Prompt for Continual Learning", CVPR 2022.
DualPrompt: Wang et al., "DualPrompt: Complementary Prompting for Rehearsal-free
Continual Learning", ECCV 2022.

q is the query feature of an image, k are the keys chosen for it, f is the model
with prompts; the cross entropy masks the classes of other tasks:

  loss = CE(f(x; chosen prompts), y) - key_loss * sum_k cos(q, k)
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from libml import trees
from libml.problems import losses
from libml.train import rehearsal
from libml.train.method import Method
from methods.parts import class_heads
from models import prompts as prompts_lib
from models import selection


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompting(Method):
  """A pool of prompts; each image gets those whose keys are nearest.

  The query pass and the pass with prompts use the same parameters. Where the
  backbone is trained, memory holds its initial values for the queries.

  Attributes:
    e_layers: Layers that get prompts of the pool.
    e_prefix: Whether these are key and value prefixes instead of tokens.
    pool_size: M, number of prompts in the pool.
    length: Number of tokens of one prompt.
    top_k: K, number of prompts that an image gets.
    prompt_key: Whether keys are learned; if not, a key is its prompt's mean.
    prompt_init: "uniform" or "normal".
    key_init: "uniform" or "zero".
    e_same_key_value: Whether one tensor is key and value prefix of the pool.
    g_layers: Layers that get the prompt shared by all images.
    g_prefix: Whether the shared prompt is a prefix instead of tokens.
    g_length: Number of tokens of the shared prompt.
    g_same_key_value: As e_same_key_value, for the shared prompt.
    reweight: Whether prompt tokens are averaged with learned weights.
    query: The query feature: "cls", the class token of the model without
      prompts; "mean", "max" or "mean_max" over patch embeddings.
    vote_group: Number of images that share one choice, by majority vote, in
      training and in the reading "_batchwise"; the released code's is the batch
      of one device. 0: each image gets its own choice.
    prompt_mask: Whether training gives task t the prompts t K to (t + 1) K - 1.
    transfer_prompts: Whether a task's own prompts start as the previous task's.
    transfer_keys: The same for keys.
    key_loss: Weight of the similarity to the chosen keys; 0 turns it off.
    mask_classes: Whether training masks the classes of other tasks.
    transfer_head: What of a task's head columns starts as the mean of earlier
      tasks' columns at the same position: "none", "kernel" or "all".
  """

  e_layers: tuple[int, ...]
  e_prefix: bool
  pool_size: int = 10
  length: int
  top_k: int
  prompt_key: bool = True
  prompt_init: str = "uniform"
  key_init: str = "uniform"
  e_same_key_value: bool = False
  g_layers: tuple[int, ...]
  g_prefix: bool = True
  g_length: int = 5
  g_same_key_value: bool = False
  reweight: bool = False
  query: str = "cls"
  vote_group: int
  prompt_mask: bool
  transfer_prompts: bool
  transfer_keys: bool = False
  key_loss: float = 1.0
  mask_classes: bool = True
  transfer_head: str = "none"

  rehearses = True
  smoke = {"vote_group": 4}

  @classmethod
  def fewest_blocks(cls, options):
    """Returns the number of blocks up to the last one with prompts."""
    return 1 + max((*options["e_layers"], *options["g_layers"]), default=0)

  def __post_init__(self):
    class_heads.check_transfer(self.transfer_head)
    if self.query not in ("cls", "mean", "max", "mean_max"):
      raise ValueError(
        f"method.query={self.query!r} must be 'cls', 'mean', 'max' or "
        "'mean_max'."
      )
    if not self.e_layers and (self.key_loss or self.prompt_mask):
      raise ValueError(
        "method.e_layers=() means no pool, so that there are no keys for "
        "key_loss and no prompts for prompt_mask; set method.key_loss=0 and "
        "method.prompt_mask=False."
      )
    if self.transfer_keys and not self.prompt_key:
      raise ValueError(
        "method.transfer_keys=True copies learned keys, but prompt_key=False "
        "has none; change one of the two."
      )
    self.prompts  # noqa: B018  (its constructor checks the other options)

  def check(self, scenario):
    """Raises ValueError for tasks of unequal sizes, or of one masked class."""
    class_heads.check_equal_tasks(scenario.stages, self.transfer_head)
    if self.mask_classes and not self.rehearsal.per_class:
      class_heads.check_masked(scenario.stages)

  @property
  def rewrites(self):
    """Prompts, keys and head columns that start a task as copies."""
    return trees.pattern(("prompt_pool", *self.model.class_heads))

  @property
  def prompts(self) -> prompts_lib.Prompts:
    """The module that holds all prompt parameters."""
    return prompts_lib.Prompts(
      width=self.model.width,
      num_heads=self.model.num_heads,
      depth=self.model.depth,
      e_layers=self.e_layers,
      e_prefix=self.e_prefix,
      pool_size=self.pool_size,
      length=self.length,
      top_k=self.top_k,
      prompt_key=self.prompt_key,
      prompt_init=self.prompt_init,
      key_init=self.key_init,
      e_same_key_value=self.e_same_key_value,
      g_layers=self.g_layers,
      g_prefix=self.g_prefix,
      g_length=self.g_length,
      g_same_key_value=self.g_same_key_value,
      reweight=self.reweight,
      param_dtype=self.model.param_dtype,
    )

  def init_params(self, params: Any, rng: jax.Array) -> Any:
    """Adds prompt_pool, prefix and reweight beside the ViT's parameters."""
    query = jnp.zeros((1, self.model.width))
    added: Any = self.prompts.init(rng, query)
    return {**params, **added.get("params", {})}

  def init_memory(self, params: Any, trainable: Any) -> Any:
    """Holds the task, its classes, and a trained backbone's initial values."""
    memory: dict[str, Any] = rehearsal.initial_memory(self.num_classes)
    backbone = {branch: params[branch] for branch in self.model.backbone}
    trained = jax.tree.leaves({k: trainable[k] for k in backbone})
    if any(trained) and self.query == "cls":
      memory["query"] = jax.tree.map(jnp.array, backbone)
    return memory

  def before_stage(self, state, stage, data):
    """Stores the task in the memory; copies prompts, keys and head columns."""
    del data
    params = state.params
    if self.e_layers:
      params = prompts_lib.transfer_block(
        params,
        np.int32(stage.index),
        self.top_k,
        prompts=self.transfer_prompts,
        keys=self.transfer_keys,
      )
    heads = self.model.class_heads
    params = class_heads.transfer(
      params, stage.classes, self.transfer_head, heads
    )
    memory = rehearsal.stage_memory(
      state.memory, stage, masked=self.mask_classes
    )
    return state.replace(params=params, memory=memory)

  def find_query(self, params: Any, memory: Any, image: jax.Array) -> jax.Array:
    """Returns the query features [B, D]; "cls" has no gradient."""
    if self.query != "cls":
      patches = self.model.apply({"params": params}, image, method="embed")
      return selection.query_from_patches(patches, self.query)
    weights = jax.lax.stop_gradient(memory.get("query", params))
    tokens = self.model.apply(
      {"params": weights}, image, rows=slice(1), method="encode"
    )
    return jax.lax.stop_gradient(tokens[:, 0])

  def choose(self, params: Any, query: jax.Array, **how: Any) -> Any:
    """Returns the ViT's prompts and the selection; see Prompts.__call__."""
    return self.prompts.apply({"params": params}, query, **how)

  def loss(self, params, memory, batch, rng):
    """Masked cross entropy minus the similarity to the chosen keys."""
    rows = rehearsal.join(batch, memory, self.rehearsal.mask)
    batch = rows.batch
    inputs, chosen = self.choose(
      params,
      self.find_query(params, memory, batch["image"]),
      task=rows.task if self.prompt_mask else None,
      # With exemplars a device's batch is twice as large and votes as one.
      vote_group=self.vote_group * rows.streams or None,
    )
    outputs = self.apply(params, {**batch, **inputs}, rng)
    logits = losses.mask_logits(outputs["logits"], rows.allowed)
    loss, parts = self.problem.loss({**outputs, "logits": logits}, batch)
    if not self.key_loss:
      return loss, parts
    similarity = chosen["reduce_sim"]
    return loss - self.key_loss * similarity, {
      **parts,
      "key_similarity": similarity,
    }

  def precompute(self, params, memory, batch):
    """Returns the "cls" queries [B, D]; the model for them never changes."""
    if self.query != "cls":
      return {}
    return {"query": self.find_query(params, memory, batch["image"])}

  def predict(self, params, memory, batch):
    """Predicts with prompts chosen by image and, as "_batchwise", by vote."""
    query = batch.get("query")
    if query is None:
      query = self.find_query(params, memory, batch["image"])
    groups = {"": None}
    if self.vote_group and self.e_layers:
      groups["_batchwise"] = self.vote_group
    readings = {}
    for name, group in groups.items():
      inputs, chosen = self.choose(
        params, query, vote_group=group, mask=batch.get("mask")
      )
      readings[name] = {**self.apply(params, {**batch, **inputs}), **chosen}
    return readings

  def observe(self, readings, batch):
    """Counts how often each prompt was chosen, int32 [M]."""
    if not self.e_layers:
      return {}
    idx = readings[""]["prompt_idx"]
    kept = jnp.broadcast_to(batch["mask"][:, None], idx.shape)
    usage = jnp.zeros(self.pool_size, jnp.int32)
    return {"prompt_usage": usage.at[idx].add(kept.astype(jnp.int32))}
