r"""GS-LoRA and GS-LoRA++: forgetting by low-rank edits of few blocks.

Zhao et al., "Continual Forgetting for Pre-trained Vision Models", CVPR 2024;
and the extension with prototypes (arXiv 2501.09705). CE_f, KL_f are means over
a batch of images to forget, CE_r, KL_r over one of images to retain, theta_g
are the adapters of lasso group g, by default a block:

  loss = CE_r + beta max(0, bound - CE_f) + alpha sum_g ||theta_g||
         [++] + w_f max(0, bound_p - KL_f) + w_r KL_r,

KL is the divergence from an image's class prototype to its feature, both after
a softmax. By default the norms are not part of the gradient: the optimizer
takes their proximal step, which makes lasso groups exactly zero.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from libml import trees
from libml.optim import group_lasso
from libml.problems import losses
from libml.train.method import Method
from libml.train.method import Round
from libml.train.method import readings
from methods.parts import low_rank
from methods.parts import pairing
from models import lora

# Beta after its decay, in the released code.
_DECAYED_BETA = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSparse(Method):
  """Raises the loss on images to forget up to a bound, with few adapters.

  Each request draws new adapters; the next one folds them into the kernels.

  Attributes:
    bound: Mean cross entropy above which a batch to forget has no further
      effect.
    beta: Weight of the forget term, one value for each request.
    beta_decay_epoch: Number of epochs after which beta is 1e-4; None: never.
    alpha: Weight of the group lasso.
    alpha_epoch: Number of epochs before which alpha is 0.
    grouping: Key of group_lasso.GROUPINGS.
    subgradient: Whether the norms are a term of the loss, as in the released
      code; then no lasso group becomes exactly zero.
    restart_slope: Slope of the Kaiming-uniform draw of A from the second
      request on. The released code has sqrt(50), which makes A 2.9 times
      smaller than the sqrt(5) of the first request.
    average_epoch: Number of epochs before the first one that enters an average
      of scale A B over epochs; None: no average. The average is measured
      ("_average") and not used otherwise.
    average_decay: Decay of that average in each epoch.
  """

  bound: float = 105.0
  beta: Sequence[float] = (0.2,)
  beta_decay_epoch: int | None = None
  alpha: float = 0.01
  alpha_epoch: int = 0
  grouping: str = "block"
  subgradient: bool = False
  restart_slope: float = lora.KAIMING_SLOPE
  average_epoch: int | None = None
  average_decay: float = 0.9

  goals = ("forget",)
  smoke = {"alpha_epoch": 1, "beta_decay_epoch": 1, "average_epoch": 1}

  def __post_init__(self):
    low_rank.check_model(self.model, "mlp", rank=8, alpha=1.0)
    low_rank.check_grouping(self.grouping)
    self._check_finite("bound", "alpha", "restart_slope")
    if not 0 <= self.average_decay < 1:
      raise ValueError(
        f"method.average_decay={self.average_decay} must be at least 0 and "
        "below 1."
      )
    for name in ("alpha_epoch", "beta_decay_epoch", "average_epoch"):
      epoch = getattr(self, name)
      if epoch is not None and not 0 <= epoch < self.epochs:
        raise ValueError(
          f"method.{name}={epoch} must be 0 to {self.epochs - 1}, because "
          f"a stage has epochs={self.epochs}."
        )

  def _check_finite(self, *names):
    for name in names:
      if not 0 <= getattr(self, name) < math.inf:
        raise ValueError(
          f"method.{name}={getattr(self, name)} must be a finite number of at "
          "least 0."
        )

  @property
  def groups(self):
    """The lasso groups of the adapters."""
    return group_lasso.of_adapters(self.grouping, self.model.blocks)

  @property
  def rewrites(self):
    """The kernels, into which adapters of earlier requests are folded."""
    return low_rank.kernels(self.model)

  def check(self, scenario):
    """Raises ValueError unless each request has its beta."""
    self._check_weights("beta", len(scenario.stages))

  def _check_weights(self, name, requests):
    values = getattr(self, name)
    if len(values) < requests or not all(0 <= v < math.inf for v in values):
      raise ValueError(
        f"method.{name}={tuple(values)} must hold a finite number of at least "
        f"0 for each of the {requests} requests."
      )

  def init_memory(self, params, trainable):
    """Holds the stage's loss weights and, if there is one, the average.

    Raises:
      ValueError: The optimizer trains other parameters than adapters.
    """
    low_rank.check_trained(trainable)
    beside = [
      name
      for name, trained in trees.flatten(trainable).items()
      if trained and not name.endswith(("/lora_a", "/lora_b"))
    ]
    if beside:
      raise ValueError(
        "GS-LoRA trains adapters only, so that a request can be undone, but "
        f"the optimizer also trains {beside[0]!r} and {len(beside) - 1} more "
        "parameters; set their group in optimizer.groups to None."
      )
    memory = {
      "classes": jnp.ones(self.num_classes, bool),
      "beta": jnp.zeros(()),
      "alpha": jnp.zeros(()),
    }
    if self.average_epoch is not None:
      memory["average"] = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        jax.eval_shape(self.changes, params),
      )
    return memory

  def changes(self, params):
    """Returns scale A B of all adapters, under their kernels' names."""
    return lora.deltas(params, self.model.lora_scale)

  def before_stage(self, state, stage, data):
    """Folds the last request's adapters into the kernels; draws new ones."""
    params = low_rank.fold(state.params, data, self.model)
    slope = self.restart_slope if stage.index else lora.KAIMING_SLOPE
    params = low_rank.restart(
      state.replace(params=params), data, slope=slope, name=f"restart_{slope}"
    )
    known = np.isin(np.arange(self.num_classes), stage.classes["known"])
    memory = {
      **state.memory,
      "classes": jnp.asarray(known),
      "beta": jnp.float32(self.beta[stage.index]),
      "alpha": jnp.float32(0.0),
    }
    state = state.replace(params=params, memory=memory)
    return self.end_epoch(state, data=data, done=0)

  def rounds(self, stage, data):
    """Returns rounds that end where `end_epoch` changes the memory.

    The streams start anew in each round, which leaves out an incomplete batch
    at its end.
    """
    ends = {self.epochs, self.alpha_epoch, self.beta_decay_epoch or 0}
    if self.average_epoch is not None:
      ends.update(range(self.average_epoch + 1, self.epochs))
    ends = sorted(ends - {0})
    per_epoch = data.steps_per_epoch(("retain",))
    streams = {"retain": ("retain",), "forget": ("forget",)}
    return tuple(
      Round(
        "train",
        self.loss,
        streams,
        (end - begin) * per_epoch,
        functools.partial(self.end_epoch, data=data, done=end),
      )
      for begin, end in zip([0, *ends], ends, strict=False)
    )

  def end_epoch(self, state, *, data, done):
    """Returns the state after `done` epochs: sets loss weights and average."""
    memory = dict(state.memory)
    if done == self.alpha_epoch:
      memory["alpha"] = jnp.float32(self.alpha)
    if done == self.beta_decay_epoch:
      memory["beta"] = jnp.float32(_DECAYED_BETA)
    if self.average_epoch is not None and done > self.average_epoch:
      decay = 0.0 if done == self.average_epoch + 1 else self.average_decay
      average = data.compiled("average", self.average)
      memory["average"] = average(memory["average"], state.params, decay)
    return state.replace(memory=memory)

  def average(self, average, params, decay):
    """Returns decay * average + (1 - decay) * (scale A B of now)."""
    return jax.tree.map(
      lambda a, c: decay * a + (1 - decay) * c, average, self.changes(params)
    )

  def extra_args(self, memory):
    """The weight of the proximal step."""
    return {} if self.subgradient else {"alpha": memory["alpha"]}

  def loss(self, params, memory, batch, rng):
    """The module's loss; without the norms if they get a proximal step."""
    names = ("retain", "forget")
    inputs = pairing.join(*(batch[name] for name in names))
    outputs = self.apply(params, inputs, rng)
    logits = losses.mask_logits(outputs["logits"], memory["classes"])
    outputs = {**outputs, "logits": logits}
    sizes = [len(batch[name]["label"]) for name in names]
    retained, forgotten = pairing.part(outputs, *sizes)
    retain, kept = self.problem.loss(retained, batch["retain"])
    forget, lost = self.problem.loss(forgotten, batch["forget"])
    total = retain + memory["beta"] * jax.nn.relu(self.bound - forget)
    structure = group_lasso.penalty(params, self.groups)
    if self.subgradient:
      total = total + memory["alpha"] * structure
    parts = {
      "retain": retain,
      "forget": forget,
      "structure": structure,
      "train_accuracy_retain": kept["train_accuracy"],
      "train_accuracy_forget": lost["train_accuracy"],
    }
    more, further = self.further(memory, batch, retained, forgotten)
    return total + more, {**parts, **further}

  def further(self, memory, batch, retained, forgotten):
    """Returns the loss's further terms, summed, and their parts for the log."""
    del memory, batch, retained, forgotten
    return 0.0, {}

  def predict(self, params, memory, batch):
    """Predicts with the adapters, and with their average ("_average")."""
    predictions = super().predict(params, memory, batch)
    if self.average_epoch is not None:
      base_params, adapters = lora.split(params)
      averaged = lora.join(
        lora.subtract(base_params, memory["average"], times=-1.0),
        jax.tree.map(jnp.zeros_like, adapters),
      )
      found = readings(self.apply(averaged, batch))
      predictions.update(
        {f"_average{name}": out for name, out in found.items()}
      )
    return predictions

  def report(self, state):
    """Norms of lasso groups and of each block's A B; numbers of changes."""
    return low_rank.report(state.params, self.groups, self.model)

  def edit(self, state):
    """The adapters, their scale, and which lasso groups are exactly zero."""
    return low_rank.edit(state.params, self.groups, self.model.lora_scale)
