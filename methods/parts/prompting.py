"""Prompts in front of a frozen transformer: L2P and DualPrompt.

L2P: Wang et al., "Learning to Prompt for Continual Learning", CVPR 2022.
DualPrompt: Wang et al., "DualPrompt: Complementary Prompting for Rehearsal-free
Continual Learning", ECCV 2022.

With q the query feature of an image, k the keys chosen for it, f the prompted
model, and the classes of other tasks masked:

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
  """A pool of prompts; each image takes those whose keys are nearest.

  One tree of parameters serves the query pass and the prompted pass; where the
  backbone is trained, memory holds the initial one for the queries.

  Attributes:
    e_layers: Layers that get prompts of the pool.
    e_prefix: Whether as key and value prefixes instead of tokens.
    pool_size: Prompts in the pool.
    length: Tokens of one prompt.
    top_k: Prompts that an image gets.
    prompt_key: Whether keys are learned; if not, they are mean prompts.
    prompt_init: "uniform" or "normal".
    key_init: "uniform" or "zero".
    e_same_key_value: Whether one tensor is key and value prefix of the pool.
    g_layers: Layers that get the prompt shared by all images.
    g_prefix: Whether that is a prefix.
    g_length: Its tokens.
    g_same_key_value: As e_same_key_value.
    reweight: Whether prompt tokens are averaged with learned weights.
    query: Feature that looks keys up: "cls" of the plain model; "mean", "max"
      or "mean_max" over patch embeddings.
    vote_group: Images that share one choice, by majority, in training and in
      the reading "_batchwise" (the reference's batch of one device). 0: each
      image chooses for itself.
    prompt_mask: Whether training gives task t the prompts t K to (t + 1) K - 1.
    transfer_prompts: Whether a task's own prompts start as the last task's.
    transfer_keys: The same for keys.
    key_loss: Weight of the similarity to the chosen keys; 0 turns it off.
    mask_classes: Whether training masks the classes of other tasks.
    transfer_head: Whether a task's columns start as the mean of earlier
      tasks' columns of the same position: "none", "kernel" or "all".
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
    """As many as there are up to the last one with prompts."""
    return 1 + max((*options["e_layers"], *options["g_layers"]), default=0)

  def __post_init__(self):
    class_heads.check_transfer(self.transfer_head)
    if self.query not in ("cls", "mean", "max", "mean_max"):
      raise ValueError(
        f"query={self.query!r} must be 'cls', 'mean', 'max' or 'mean_max'."
      )
    if not self.e_layers and (self.key_loss or self.prompt_mask):
      raise ValueError(
        "Without a pool (e_layers=()) there are no keys to pull and no "
        "prompts to mask; set key_loss=0 and prompt_mask=False."
      )
    if self.transfer_keys and not self.prompt_key:
      raise ValueError(
        "transfer_keys=True copies learned keys, and prompt_key=False has none."
      )
    self.prompts  # noqa: B018  (its constructor checks the other options)

  def check(self, scenario):
    """A head is handed on between tasks of equal size."""
    class_heads.check_equal_tasks(scenario.stages, self.transfer_head)

  @property
  def rewrites(self):
    """Prompts and columns that are handed on."""
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
    """Holds the task, its classes, and queries' weights if they would move."""
    memory: dict[str, Any] = rehearsal.initial_memory(self.num_classes)
    backbone = {branch: params[branch] for branch in self.model.backbone}
    trained = jax.tree.leaves({k: trainable[k] for k in backbone})
    if any(trained) and self.query == "cls":
      memory["query"] = jax.tree.map(jnp.array, backbone)
    return memory

  def before_stage(self, state, stage, data):
    """Writes the task down; hands prompts, keys, head columns on to it."""
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
    """Returns what keys are compared with, [B, D]; "cls" has no gradient."""
    if self.query != "cls":
      patches = self.model.apply({"params": params}, image, method="embed")
      return selection.query_from_patches(patches, self.query)
    weights = jax.lax.stop_gradient(memory.get("query", params))
    tokens = self.model.apply(
      {"params": weights}, image, rows=slice(1), method="encode"
    )
    return jax.lax.stop_gradient(tokens[:, 0])

  def choose(self, params: Any, query: jax.Array, **how: Any) -> Any:
    """Returns the ViT's further inputs, and what was selected."""
    return self.prompts.apply({"params": params}, query, **how)

  def loss(self, params, memory, batch, rng):
    """Masked cross entropy, less the similarity to the chosen keys."""
    rows = rehearsal.join(batch, memory, self.rehearsal.mask)
    batch = rows.batch
    inputs, chosen = self.choose(
      params,
      self.find_query(params, memory, batch["image"]),
      task=rows.task if self.prompt_mask else None,
      # With exemplars a device's batch is twice as large, and votes as one.
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
    """The query never changes: it is the frozen or the initial model's."""
    if self.query != "cls":
      return {}
    return {"query": self.find_query(params, memory, batch["image"])}

  def predict(self, params, memory, batch):
    """Chooses prompts for each image, and once more for each vote group."""
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
    """Counts how often each prompt was chosen, [M]."""
    if not self.e_layers:
      return {}
    idx = readings[""]["prompt_idx"]
    kept = jnp.broadcast_to(batch["mask"][:, None], idx.shape)
    usage = jnp.zeros(self.pool_size, jnp.int32)
    return {"prompt_usage": usage.at[idx].add(kept.astype(jnp.int32))}
