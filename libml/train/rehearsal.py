"""Rehearsal: training on exemplars (kept images) of earlier stages.

A buffer is a list of row numbers. The images themselves, uint8 or encoded, are
in host memory already, so a buffer costs 12 bytes an image. Exemplars are
augmented anew each time. The seed alone decides which images are kept; a
checkpoint holds a checksum of their rows.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from libml import datasets
from libml import scenarios

MASKS = ("seen", "old", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rehearsal:
  """Which images of earlier stages are kept, and how stages train on them.

  Attributes:
    per_class: Images kept of each class of each stage; 0: no rehearsal.
    include_current: Whether a stage's steps may also replay exemplars of the
      stage itself.
    replay: Whether exemplars join each training step, as many as new images;
      a step then has twice the batch.
    mask: Classes in the loss of an exemplar: "seen", all up to this stage;
      "old", those without the stage's own; "none", all classes of the head.
    train: Whether to train on the stage's own images; if not, only the review
      trains (GDumb: Prabhu et al., ECCV 2020).
    review_epochs: Epochs over the buffer after a stage's own images. The
      learning-rate schedule starts again; it is as long as the stage's.
    review_last_only: Whether only the last stage has a review.

  Raises:
    ValueError: An unknown mask, a number below 0, or settings that have no
      effect or would train nothing.
  """

  per_class: int = 0
  include_current: bool = False
  replay: bool = True
  mask: str = "seen"
  train: bool = True
  review_epochs: int = 0
  review_last_only: bool = False

  def __post_init__(self):
    """Checks the fields."""
    if self.mask not in MASKS:
      raise ValueError(
        f"rehearsal.mask={self.mask!r} must be one of {', '.join(MASKS)}."
      )
    for name in ("per_class", "review_epochs"):
      if getattr(self, name) < 0:
        raise ValueError(
          f"rehearsal.{name}={getattr(self, name)} must be 0 or more."
        )
    if self.review_epochs and not self.per_class:
      raise ValueError(
        f"rehearsal.review_epochs={self.review_epochs} needs a buffer; set "
        "rehearsal.per_class to the images kept of each class."
      )
    if not self.train and not self.review_epochs:
      raise ValueError(
        "rehearsal.train=False trains on the buffer only; set "
        "rehearsal.review_epochs to 1 or more."
      )
    replay = "rehearsal.replay=True"
    review = "rehearsal.review_epochs to 1 or more"
    needs = {
      "per_class": (
        self.replay or self.review_epochs,
        f"{replay}, or {review}",
      ),
      "include_current": (self.replay, replay),
      "review_last_only": (self.review_epochs, review),
    }
    for name, (is_read, remedy) in needs.items():
      if getattr(self, name) and not is_read:
        raise ValueError(
          f"rehearsal.{name}={getattr(self, name)} would have no effect; set "
          f"{remedy}."
        )
    if self.mask == "old" and (self.include_current or self.review_epochs):
      raise ValueError(
        "rehearsal.mask='old' hides the stage's own classes, which "
        "include_current and review_epochs train on; take 'seen'."
      )

  def extend(
    self, scenario: scenarios.Scenario, seed: int
  ) -> scenarios.Scenario:
    """Adds the roles "replay" and "buffer" to the stages of a scenario.

    "replay" has the exemplars that join a stage's steps, "buffer" all images
    kept after the stage.

    Args:
      scenario: Its stages have the role "learn".
      seed: Decides which images of a class are kept.

    Raises:
      ValueError: A class with fewer images than `per_class`, a class that two
        stages learn under the mask "old", or a stage with another goal than
        "learn".
    """
    if not self.per_class:
      return scenario
    before, stages, known = datasets.Subset(()), [], set()
    for stage in scenario.stages:
      if stage.goal != "learn":
        raise ValueError(
          f"rehearsal.per_class={self.per_class} keeps images of what is "
          f"learned, and stage {stage.index + 1} is to {stage.goal}; set it "
          "to 0."
        )
      again = sorted(known & set(stage.classes["learn"]))
      if self.mask == "old" and again:
        raise ValueError(
          f"rehearsal.mask='old' hides the classes {again} from the loss of "
          f"their exemplars in stage {stage.index + 1}, which learns them "
          "again; take 'seen'."
        )
      known |= set(stage.classes["learn"])
      own = stage.train["learn"].take_per_class(self.per_class, seed)
      after = before + own.without(before)
      replay = after if self.include_current else before
      roles = {"buffer": after, **({"replay": replay} if len(replay) else {})}
      stages.append(dataclasses.replace(stage, train={**stage.train, **roles}))
      before = after
    crc = 0
    for piece in before.pieces:
      crc = zlib.crc32(piece.rows.tobytes() + piece.labels.tobytes(), crc)
    return dataclasses.replace(
      scenario,
      stages=tuple(stages),
      description={
        **scenario.description,
        "exemplars": {"images": len(before), "rows_crc32": crc},
      },
      seeds={**scenario.seeds, "exemplars": seed},
    )

  def rounds(
    self, train: Any, stage: scenarios.Stage, data: Any, *, last: bool
  ) -> tuple[Any, ...]:
    """Returns the rounds of a stage, with replay and review.

    Args:
      train: The round without rehearsal.
      stage: With the roles that `extend` adds.
      data: The stage's data.
      last: Whether this is the last stage.
    """
    review = self.review_epochs and (last or not self.review_last_only)
    rounds = []
    if self.train:
      if self.replay and "replay" in stage.train:
        train = dataclasses.replace(
          train,
          name=f"{train.name}_replay",
          streams={**train.streams, "replay": ("replay",)},
        )
      rounds.append(train)
    if review:
      per_epoch = data.steps_per_epoch(("buffer",))

      def restart(state):
        # The schedule of learning rates is at its end.
        return state.replace(
          step=jnp.zeros((), jnp.int32),
          steps_per_epoch=jnp.asarray(per_epoch, jnp.int32),
          rng=jax.random.fold_in(state.rng, 1),
        )

      rounds = [dataclasses.replace(r, finish=restart) for r in rounds]
      rounds.append(
        dataclasses.replace(
          train,
          name="review",
          streams={"replay": ("buffer",)},
          steps=self.review_epochs * per_epoch,
        )
      )
    return tuple(rounds)


class Joined(NamedTuple):
  """One batch of several streams.

  Attributes:
    batch: Arrays [B, ...].
    allowed: Classes in each row's loss, bool [B, C] or [1, C].
    task: Task of each row, int32 [B] or [].
    streams: How many streams were joined.
  """

  batch: dict[str, jax.Array]
  allowed: jax.Array
  task: jax.Array
  streams: int


def initial_memory(num_classes: int) -> dict[str, jax.Array]:
  """Returns the memory that `join` reads, as it is before the first stage.

  Returns:
    "classes" bool [C], in the loss of new images; "current" and "seen" bool
    [C], learned by this stage, and up to it; "task" int32 [], the stage's
    index; "task_of" int32 [C], the last stage that learned each class.
  """
  return {
    "classes": jnp.ones(num_classes, bool),
    "current": jnp.zeros(num_classes, bool),
    "seen": jnp.zeros(num_classes, bool),
    "task": jnp.zeros((), jnp.int32),
    "task_of": jnp.zeros(num_classes, jnp.int32),
  }


def stage_memory(
  memory: Mapping[str, jax.Array], stage: scenarios.Stage, *, masked: bool
) -> dict[str, Any]:
  """Returns the memory with which a stage starts.

  Args:
    memory: As `initial_memory`.
    stage: Its classes to learn become "current" and "seen".
    masked: Whether they also become "classes".
  """
  # NumPy: several processes cannot share an array that is on one device.
  current = np.isin(np.arange(len(memory["seen"])), stage.classes["learn"])
  task = np.int32(stage.index)
  return {
    **memory,
    "classes": current if masked else memory["classes"],
    "current": current,
    "seen": memory["seen"] | current,
    "task": task,
    # If domains share classes, the newest domain's prompts are used.
    "task_of": jnp.where(current, task, memory["task_of"]),
  }


def join(
  batch: Mapping[str, Any], memory: Mapping[str, Any], mask: str
) -> Joined:
  """Joins the streams "train" and "replay", either or both, row by row.

  Args:
    batch: Stream -> {"image": [B, ...], "label": int32 [B] or [B, C], ...}.
    memory: From `stage_memory`.
    mask: One of MASKS, for the exemplars.

  Returns:
    B rows of one stream, or 2 B of both, in which the odd rows are exemplars.
    Neighbours are on the same device, so no image moves between devices.
  """
  if "replay" not in batch:
    return Joined(
      batch["train"], memory["classes"][None], memory["task"], streams=1
    )
  exemplars = batch["replay"]
  label = exemplars["label"]
  label = label if label.ndim == 1 else jnp.argmax(label, axis=-1)
  allowed = {
    "seen": memory["seen"],
    "old": memory["seen"] & ~memory["current"],
    "none": jnp.ones_like(memory["seen"]),
  }[mask]
  allowed = jnp.broadcast_to(allowed[None], (len(label), len(allowed)))
  task = memory["task_of"][label]
  if "train" not in batch:
    return Joined(dict(exemplars), allowed, task, streams=1)

  def weave(new, old):
    return jnp.stack([new, old], axis=1).reshape(-1, *new.shape[1:])

  new = jnp.broadcast_to(memory["classes"][None], allowed.shape)
  return Joined(
    jax.tree.map(weave, dict(batch["train"]), dict(exemplars)),
    weave(new, allowed),
    weave(jnp.broadcast_to(memory["task"], task.shape), task),
    streams=2,
  )
