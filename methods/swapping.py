r"""Knowledge Swapping: learn, forget and retain by one low-rank edit.

Xing et al., "Knowledge Swapping via Learning and Unlearning", ICML 2025. With T
the problem's own loss on a batch to learn (L), to forget (F) or to retain (R),
and theta_g the adapters of group g, a block:

  learn:   w_l T(L) + w_r T(R) + alpha sum_g ||theta_g||
  forget:  T(R) + w_f max(0, bound - T(F)) + alpha sum_g ||theta_g||

What was learned is part of R when a later stage forgets. The adapters are
neither folded nor drawn anew between stages, and the optimizer's moments go on.
Both at once is ours, as the released code has no such loss that runs:

  swap:    w_l T(L) + T(R) + w_f max(0, bound - T(F)) + alpha sum_g ||theta_g||
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from libml import trees
from libml.optim import group_lasso
from libml.optim import transforms
from libml.train.method import Method
from libml.train.method import Round
from methods.parts import low_rank
from methods.parts import pairing
from models import lora

# What a stage with a goal has batches of; the first makes its epochs.
_STREAMS = {
  "learn": ("retain", "learn"),
  "forget": ("retain", "forget"),
  "swap": ("retain", "learn", "forget"),
  "protect": ("retain", "learn", "forget"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swapping(Method):
  """Each stage has the loss of its goal, on adapters that all stages share.

  Attributes:
    learn_weight: w_l.
    retain_weight: w_r.
    forget_weight: w_f.
    bound: Loss above which a batch to forget pushes no more.
    alpha: Weight of the group lasso.
    grouping: Row of group_lasso.GROUPINGS.
    subgradient: Whether the norms are a term of the loss, as published; else
      the optimizer takes their proximal step, which makes groups exactly zero.
    protect: Whether a stage that learns after another forgot keeps the bounded
      loss on what was forgotten, with w_f. Not in the paper, where nothing
      stops those classes from coming back.
    slope: Of the draw of A before the first stage; the released code's is
      sqrt(50).
    fold: Whether a stage's adapters are folded into the kernels and drawn anew
      before the next, as in GS-LoRA; the optimizer must then start afresh.
    new_columns: Pattern of trained parameters whose last axis is classes; only
      the new classes' columns of them move. In the paper none is trained.
  """

  learn_weight: float = 1.0
  retain_weight: float = 0.2
  forget_weight: float = 0.2
  bound: float = 105.0
  alpha: float = 0.005
  grouping: str = "block"
  subgradient: bool = True
  protect: bool = False
  slope: float = math.sqrt(50)
  fold: bool = False
  new_columns: str = r"(?!)"
  restart_optimizer: bool = False

  goals = ("learn", "forget", "swap")

  def __post_init__(self):
    low_rank.check_model(self.model, "mlp", rank=8, alpha=1.0)
    low_rank.check_grouping(self.grouping)
    weights = ("learn_weight", "retain_weight", "forget_weight")
    for name in (*weights, "bound", "alpha", "slope"):
      if not 0 <= getattr(self, name) < math.inf:
        raise ValueError(
          f"method.{name}={getattr(self, name)} must be at least 0, and finite."
        )
    if self.fold and not self.restart_optimizer:
      raise ValueError(
        "method.fold=True draws new adapters, and the optimizer's moments are "
        "of the old ones; set method.restart_optimizer=True."
      )

  @property
  def groups(self):
    """Groups of adapters that are shrunk together."""
    return group_lasso.of_adapters(self.grouping, self.model.blocks)

  @property
  def transforms(self):
    """Parameters in `new_columns` change in the new classes' columns only."""
    return (transforms.keep_salient(),)

  @property
  def rewrites(self):
    """Kernels, where they take in earlier stages' adapters."""
    return low_rank.kernels(self.model) if self.fold else r"(?!)"

  def init_memory(self, params, trainable):
    """Holds the stage's first adapters, and which columns may move."""
    low_rank.check_trained(trainable)
    _, adapters = lora.split(params)
    memory = {"start": jax.tree.map(jnp.zeros_like, adapters)}
    flags = trees.flatten(trainable)
    columns = {
      name: jnp.zeros(leaf.shape, bool)
      for name, leaf in trees.flatten(params).items()
      if flags[name] and re.fullmatch(self.new_columns, name)
    }
    return {**memory, "salient": columns} if columns else memory

  def before_stage(self, state, stage, data):
    """Draws the adapters once, or at each stage where they are folded."""
    if self.fold:
      params = low_rank.fold(state.params, data, self.model)
      state = state.replace(params=params)
    if self.fold or not stage.index:
      params = low_rank.restart(state, data, slope=self.slope)
      state = state.replace(params=params)
    # A copy: the step gives the state's own buffers away.
    copy = data.compiled("copy", functools.partial(jax.tree.map, jnp.copy))
    memory = {**state.memory, "start": copy(lora.split(state.params)[1])}
    if "salient" in memory:
      new = np.isin(np.arange(self.num_classes), stage.classes["new"])
      memory["salient"] = {
        name: jnp.broadcast_to(jnp.asarray(new), leaf.shape)
        for name, leaf in memory["salient"].items()
      }
    return state.replace(memory=memory)

  def rounds(self, stage, data):
    """One round of the goal's loss; the data to retain make the epochs."""
    protects = self.protect and "forget" in stage.train
    name = "protect" if protects and stage.goal == "learn" else stage.goal
    streams = {role: (role,) for role in _STREAMS[name]}
    steps = self.epochs * self.steps_per_epoch(stage, data)
    loss = functools.partial(self.loss, goal=name)
    return (Round(name, loss, streams, steps),)

  def extra_args(self, memory):
    """The proximal step's weight, and the columns that may move."""
    args = {k: v for k, v in memory.items() if k == "salient"}
    return (
      args if self.subgradient else {**args, "alpha": jnp.float32(self.alpha)}
    )

  def loss(self, params, memory, batch, rng, *, goal="swap"):
    """The problem's loss on each stream, weighed; the norms beside."""
    del memory
    names = _STREAMS[goal]
    inputs = pairing.join(*(batch[name] for name in names))
    outputs = self.apply(params, inputs, rng)
    sizes = [len(batch[name]["image"]) for name in names]
    terms, parts = {}, {}
    for name, part in zip(names, pairing.part(outputs, *sizes), strict=True):
      terms[name], told = self.problem.loss(part, batch[name])
      parts[name] = terms[name]
      parts.update({f"{key}_{name}": value for key, value in told.items()})
    retained = goal in ("learn", "protect")
    total = terms["retain"] * (self.retain_weight if retained else 1.0)
    if "learn" in terms:
      total = total + self.learn_weight * terms["learn"]
    if "forget" in terms:
      push = jax.nn.relu(self.bound - terms["forget"])
      total = total + self.forget_weight * push
    structure = group_lasso.penalty(params, self.groups)
    if self.subgradient:
      total = total + self.alpha * structure
    return total, {**parts, "structure": structure}

  def report(self, state):
    """Norms of each block's adapters, and of what the stage changed there."""
    told = low_rank.report(state.params, self.groups, self.model)
    moved = low_rank.moved(state.params, state.memory["start"], self.model)
    return {**told, "moved_norm": moved}
