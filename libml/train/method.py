"""What a method is: how parameters change from stage to stage."""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import ClassVar

import jax
import optax

from libml.optim.group_lasso import LassoGroups
from libml.pipeline.stage_data import StageData
from libml.problems import Problem
from libml.scenarios import Scenario
from libml.scenarios import Stage
from libml.train.rehearsal import Rehearsal
from libml.train.train_state import TrainState

Outputs = dict[str, Any]
# Fields of a method that a run gives; all others are options of a config.
GIVEN = (
  "model",
  "problem",
  "num_classes",
  "num_stages",
  "epochs",
  "rehearsal",
)


def readings(outputs: Outputs) -> dict[str, Outputs]:
  """Returns a model's outputs by reading; "" is the one that counts."""
  others = outputs.get("readings", {})
  return {
    "": outputs,
    **{name: {**outputs, "logits": logits} for name, logits in others.items()},
  }


@dataclasses.dataclass(frozen=True)
class Round:
  """Some steps of one loss on some streams.

  Attributes:
    name: Rounds of one name share one compiled step.
    loss: (params, memory, batch, rng) -> (scalar, {name: scalar}).
    streams: Name in the batch -> roles whose data are mixed into it.
    steps: Number of steps.
    finish: Applied to the state after the last step.
    continues: Whether its images go on where those of the stage's last round of
      this name stopped, instead of a new order.
  """

  name: str
  loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
  streams: Mapping[str, tuple[str, ...]]
  steps: int
  finish: Callable[[TrainState], TrainState] = lambda state: state
  continues: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """How a pretrained model changes, stage after stage: pure hooks.

  Attributes:
    model: A flax linen module, (inputs, *, train) -> {name: array}.
    problem: What an example is.
    num_classes: Columns of the head.
    num_stages: Length of the scenario.
    epochs: Passes over the anchor data of a stage.
    rehearsal: What is kept of earlier stages' images, and its use.
    restart_optimizer: Whether a stage starts with fresh moments.
  """

  model: Any
  problem: Problem
  num_classes: int
  num_stages: int
  epochs: int = 1
  rehearsal: Rehearsal = Rehearsal()
  restart_optimizer: bool = True

  @property
  def rewrites(self) -> str:
    """Pattern of untrained parameters that hooks rewrite between stages.

    Checkpoints must hold them. A fixed pattern may be a class attribute.
    """
    return r"(?!)"

  # Pattern of the memory's leaves that no stage changes. Checkpoints need not
  # hold them.
  constant: ClassVar[str] = r"(?!)"
  # Parameters of the method's own that no export holds, by their first name.
  private: ClassVar[tuple[str, ...]] = ()
  # Roles whose images go through `prepare`.
  prepared: ClassVar[tuple[str, ...]] = ()
  # Names of the problems that it serves.
  problems: ClassVar[tuple[str, ...]] = ("classification",)
  # Goals of the stages that it can serve.
  goals: ClassVar[tuple[str, ...]] = ("learn",)
  # Whether `loss` takes labels that are probabilities.
  mixes: ClassVar[bool] = True
  # Whether `loss` takes exemplars of earlier stages (batch["replay"]).
  rehearses = False
  # Option -> its largest value in a smoke run.
  smoke: ClassVar[Mapping[str, float]] = {}

  @classmethod
  def fewest_blocks(cls, options: Mapping[str, Any]) -> int:
    """Returns how many blocks a model needs, by the options of a config."""
    del options
    return 1

  @property
  def groups(self) -> LassoGroups | None:
    """Groups of parameters that a proximal optimizer shrinks together."""
    return None

  @property
  def transforms(self) -> tuple[optax.GradientTransformation, ...]:
    """Transforms that end the chain of every trained group.

    Their extra arguments come from `extra_args`.
    """
    return ()

  def check(self, scenario: Scenario) -> None:
    """Raises ValueError for a scenario that the options do not fit."""
    del scenario

  def init_params(self, params: Any, rng: jax.Array) -> Any:
    """Returns the model's parameters with the method's own ones added."""
    del rng
    return params

  def init_memory(self, params: Any, trainable: Any) -> Any:
    """Returns what the method carries over stages: arrays, fixed structure.

    Args:
      params: All parameters.
      trainable: Booleans of the same structure.
    """
    del params, trainable
    return {}

  def roles(self, stage: Stage) -> tuple[str, ...]:
    """Returns the roles whose data make an epoch."""
    if not self.rehearsal.train:
      return ("buffer",)
    return ("retain",) if "retain" in stage.train else (stage.goal,)

  def before_stage(
    self, state: TrainState, stage: Stage, data: StageData
  ) -> TrainState:
    """Returns the state with which a stage starts."""
    del stage, data
    return state

  def steps_per_epoch(self, stage: Stage, data: StageData) -> int:
    """Returns the length of an epoch, by which learning rates go."""
    return data.steps_per_epoch(self.roles(stage))

  def prepare(self, params: Any, memory: Any, batch: Any) -> dict[str, Any]:
    """Returns arrays [B, ...] of training images that no step will change.

    They are made once a stage and join the batches that `loss` receives, unless
    images are augmented; then they are missing there.
    """
    del params, memory, batch
    return {}

  def stage_epochs(self, stage: Stage) -> int:
    """Returns how many epochs a stage trains."""
    del stage
    return self.epochs

  def rounds(self, stage: Stage, data: StageData) -> tuple[Round, ...]:
    """Returns what is trained in a stage, in order."""
    roles = self.roles(stage)
    steps = self.stage_epochs(stage) * data.steps_per_epoch(roles)
    train = Round("train", self.loss, {"train": roles}, steps)
    last = stage.index + 1 == self.num_stages
    return self.rehearsal.rounds(train, stage, data, last=last)

  def loss(
    self, params: Any, memory: Any, batch: Any, rng: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss of one batch, and named scalars for the log."""
    raise NotImplementedError

  def extra_args(self, memory: Any) -> dict[str, Any]:
    """Returns arrays for the optimizer's transforms."""
    del memory
    return {}

  def after_stage(
    self, state: TrainState, stage: Stage, data: StageData
  ) -> TrainState:
    """Returns the state that is measured after a stage."""
    del stage, data
    return state

  def precompute(self, params: Any, memory: Any, batch: Any) -> dict[str, Any]:
    """Returns arrays [B, ...] of test images that no stage will change.

    They are made once a run and join the batch that `predict` receives.
    """
    del params, memory, batch
    return {}

  def predict(self, params: Any, memory: Any, batch: Any) -> dict[str, Outputs]:
    """Returns the outputs by reading; "" is the one that counts.

    A further reading's name is the suffix of its metrics ("_batchwise"). Those
    of the model itself are its outputs["readings"]: name -> logits [B, C].
    """
    del memory
    return readings(self.apply(params, batch))

  def observe(
    self, readings: Mapping[str, Outputs], batch: Any
  ) -> dict[str, jax.Array]:
    """Returns counts to sum over a test set and draw as histograms."""
    del readings, batch
    return {}

  def report(self, state: TrainState) -> dict[str, Any]:
    """Returns what to tell of a finished stage: name -> number, or a picture's.

    A picture is a mapping of names to numbers. Names are free: numbers become
    curves, and columns of the table that `libml.results.cells.columns` titles.
    """
    del state
    return {}

  def edit(self, state: TrainState) -> dict[str, jax.Array]:
    """Returns what a finished stage did to the weights, to be kept on disk."""
    del state
    return {}

  def apply(
    self, params: Any, inputs: Any, rng: jax.Array | None = None
  ) -> Outputs:
    """Runs the model; with an rng in training mode, dropout on."""
    rngs = None if rng is None else {"dropout": rng}
    return self.model.apply(
      {"params": params}, inputs, train=rng is not None, rngs=rngs
    )
