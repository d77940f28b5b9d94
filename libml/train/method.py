"""The contract of a method: hooks that a run calls in each stage."""

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
# Fields that a run sets; all others are options of a config's method section.
GIVEN = (
  "model",
  "problem",
  "num_classes",
  "num_stages",
  "epochs",
  "rehearsal",
)


def readings(outputs: Outputs) -> dict[str, Outputs]:
  """Returns reading -> a model's outputs; "" is the main reading."""
  others = outputs.get("readings", {})
  return {
    "": outputs,
    **{name: {**outputs, "logits": logits} for name, logits in others.items()},
  }


@dataclasses.dataclass(frozen=True)
class Round:
  """A number of training steps with one loss.

  Attributes:
    name: Rounds with the same name share one compiled step.
    loss: (params, memory, batch, rng) -> (scalar, {name: scalar}).
    streams: Name in the batch -> roles whose images it mixes.
    steps: Number of steps.
    finish: state -> state, called after the last step.
    continues: Whether images continue in the order of the stage's last round of
      this name, instead of a new order.
  """

  name: str
  loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
  streams: Mapping[str, tuple[str, ...]]
  steps: int
  finish: Callable[[TrainState], TrainState] = lambda state: state
  continues: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """How a pretrained model changes from stage to stage: pure hooks.

  Attributes:
    model: A flax linen module, (inputs, *, train) -> {name: array}.
    problem: Loss and metrics of an example.
    num_classes: Columns of the head.
    num_stages: Length of the scenario.
    epochs: Passes over a stage's images of `roles`.
    rehearsal: Which images of earlier stages are kept, and how they are used.
    restart_optimizer: Whether a stage starts with moments of 0.
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
    """Pattern of untrained parameters that hooks change between stages.

    Checkpoints hold them. A fixed pattern may be a class attribute.
    """
    return r"(?!)"

  # Pattern of the memory's leaves that no stage changes; checkpoints omit them.
  constant: ClassVar[str] = r"(?!)"
  # Top-level names of parameters that the method adds and exports leave out.
  private: ClassVar[tuple[str, ...]] = ()
  # Roles whose images go through `prepare`.
  prepared: ClassVar[tuple[str, ...]] = ()
  # Names of the problems that it serves.
  problems: ClassVar[tuple[str, ...]] = ("classification",)
  # Goals of the stages that it can train.
  goals: ClassVar[tuple[str, ...]] = ("learn",)
  # Whether `loss` takes labels that are probabilities.
  mixes: ClassVar[bool] = True
  # Whether `loss` takes exemplars of earlier stages (batch["replay"]).
  rehearses = False
  # Option -> its largest value in a smoke run.
  smoke: ClassVar[Mapping[str, float]] = {}

  @classmethod
  def fewest_blocks(cls, options: Mapping[str, Any]) -> int:
    """Returns the fewest blocks that a model must have for these options."""
    del options
    return 1

  @property
  def groups(self) -> LassoGroups | None:
    """Lasso groups, each of which a proximal optimizer shrinks as a whole."""
    return None

  @property
  def transforms(self) -> tuple[optax.GradientTransformation, ...]:
    """Transforms at the end of the chain of every trained parameter group.

    Their extra arguments come from `extra_args`.
    """
    return ()

  def check(self, scenario: Scenario) -> None:
    """Raises ValueError if the options do not fit a scenario."""
    del scenario

  def init_params(self, params: Any, rng: jax.Array) -> Any:
    """Returns the model's parameters and those that the method adds."""
    del rng
    return params

  def init_memory(self, params: Any, trainable: Any) -> Any:
    """Returns the arrays that the method carries over stages.

    Their structure, shapes and dtypes must not change during a run.

    Args:
      params: All parameters.
      trainable: Which of them are trained, booleans of the same structure.
    """
    del params, trainable
    return {}

  def roles(self, stage: Stage) -> tuple[str, ...]:
    """Returns the roles whose images make an epoch."""
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
    """Returns the steps of an epoch, the unit of learning-rate schedules."""
    return data.steps_per_epoch(self.roles(stage))

  def prepare(self, params: Any, memory: Any, batch: Any) -> dict[str, Any]:
    """Returns arrays [B, ...] of training images that are fixed in a stage.

    They are computed once a stage and added to the batches that `loss` gets. If
    images are augmented they are not computed, and batches lack them.
    """
    del params, memory, batch
    return {}

  def stage_epochs(self, stage: Stage) -> int:
    """Returns the number of epochs of a stage."""
    del stage
    return self.epochs

  def rounds(self, stage: Stage, data: StageData) -> tuple[Round, ...]:
    """Returns the rounds of a stage, in order."""
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
    """Returns the state with which a stage ends, and which is measured."""
    del stage, data
    return state

  def precompute(self, params: Any, memory: Any, batch: Any) -> dict[str, Any]:
    """Returns arrays [B, ...] of test images that are fixed in a run.

    They are computed once a run and added to the batch that `predict` gets.
    """
    del params, memory, batch
    return {}

  def predict(self, params: Any, memory: Any, batch: Any) -> dict[str, Outputs]:
    """Returns reading -> outputs; "" is the main reading.

    Another reading is a second way to predict, such as "_batchwise"; its name
    is the suffix of its metrics. A model's own readings are in its
    outputs["readings"]: name -> logits [B, C].
    """
    del memory
    return readings(self.apply(params, batch))

  def observe(
    self, readings: Mapping[str, Outputs], batch: Any
  ) -> dict[str, jax.Array]:
    """Returns name -> counts; their sums over a test set become histograms."""
    del readings, batch
    return {}

  def report(self, state: TrainState) -> dict[str, Any]:
    """Returns name -> number, or name -> {label: number}, of a finished stage.

    Numbers become curves in TensorBoard and columns of the tables, with titles
    from `libml.results.cells.columns`. A mapping becomes a bar chart.
    """
    del state
    return {}

  def edit(self, state: TrainState) -> dict[str, jax.Array]:
    """Returns name -> array, the stage's change of weights to write to disk."""
    del state
    return {}

  def apply(
    self, params: Any, inputs: Any, rng: jax.Array | None = None
  ) -> Outputs:
    """Runs the model; with an rng it is in training mode, with dropout."""
    rngs = None if rng is None else {"dropout": rng}
    return self.model.apply(
      {"params": params}, inputs, train=rng is not None, rngs=rngs
    )
