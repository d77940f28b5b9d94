r"""Knowledge Swapping: learns, forgets and retains with the same adapters.

Xing et al., "Knowledge Swapping via Learning and Unlearning", ICML 2025. T is
the problem's own loss on a batch to learn (L), to forget (F) or to retain (R),
theta_g the adapters of lasso group g, by default a block:

  learn:   w_l T(L) + w_r T(R) + alpha sum_g ||theta_g||
  forget:  T(R) + w_f max(0, bound - T(F)) + alpha sum_g ||theta_g||

When a later stage forgets, R contains what earlier stages learned. Between
stages the adapters are neither folded nor drawn anew, and the optimizer's
moments are kept. The loss that learns and forgets in one stage is our own; the
released code has none that runs:

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

# Goal of a stage -> roles in a step's batch; the first one makes an epoch.
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
    bound: Loss above which a batch to forget has no further effect.
    alpha: Weight of the group lasso.
    grouping: Key of group_lasso.GROUPINGS.
    subgradient: Whether the norms are a term of the loss, as in the paper. If
      not, the optimizer takes their proximal step, which makes lasso groups
      exactly zero.
    protect: Whether a stage that learns after another one forgot keeps the
      forget term, w_f max(0, bound - T(F)). The paper has no such term, and
      forgotten classes may come back.
    slope: Slope of the Kaiming-uniform draw of A before the first stage; the
      released code has sqrt(50).
    fold: Whether adapters are folded into the kernels and drawn anew before
      each stage, as in GS-LoRA; this needs restart_optimizer=True.
    new_columns: Pattern of trained parameters whose last axis is the classes.
      Only the columns of new classes are trained. The paper trains none.
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
          f"method.{name}={getattr(self, name)} must be a finite number of at "
          "least 0."
        )
    if self.fold and not self.restart_optimizer:
      raise ValueError(
        "method.fold=True draws new adapters at each stage, to which the "
        "optimizer's moments do not belong; set method.restart_optimizer=True."
      )

  @property
  def groups(self):
    """The lasso groups of the adapters."""
    return group_lasso.of_adapters(self.grouping, self.model.blocks)

  @property
  def transforms(self):
    """Restricts updates of `new_columns` to the columns of new classes."""
    return (transforms.keep_salient(),)

  @property
  def rewrites(self):
    """The kernels, if adapters are folded into them."""
    return low_rank.kernels(self.model) if self.fold else r"(?!)"

  def init_memory(self, params, trainable):
    """Holds the adapters at the start of the stage, and the trained columns."""
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
    """Draws the adapters: once, or at each stage if they are folded."""
    if self.fold:
      params = low_rank.fold(state.params, data, self.model)
      state = state.replace(params=params)
    if self.fold or not stage.index:
      params = low_rank.restart(state, data, slope=self.slope)
      state = state.replace(params=params)
    # Copy: the step donates the buffers of the state.
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
    """Returns one round with the goal's loss; images to retain make epochs."""
    protects = self.protect and "forget" in stage.train
    name = "protect" if protects and stage.goal == "learn" else stage.goal
    streams = {role: (role,) for role in _STREAMS[name]}
    steps = self.epochs * self.steps_per_epoch(stage, data)
    loss = functools.partial(self.loss, goal=name)
    return (Round(name, loss, streams, steps),)

  def extra_args(self, memory):
    """The weight of the proximal step, and the columns that are trained."""
    args = {k: v for k, v in memory.items() if k == "salient"}
    return (
      args if self.subgradient else {**args, "alpha": jnp.float32(self.alpha)}
    )

  def loss(self, params, memory, batch, rng, *, goal="swap"):
    """The loss of a goal: weighted losses of the streams, and the norms."""
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
    """Norms of the adapters, and of each block's change in this stage."""
    told = low_rank.report(state.params, self.groups, self.model)
    moved = low_rank.moved(state.params, state.memory["start"], self.model)
    return {**told, "moved_norm": moved}
