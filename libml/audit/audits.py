"""Audits: does a model still know what it was asked to forget?

Each asks the model as it is after a stage ("after"), the first one ("before")
and, where there is one, a model that never saw the classes ("retrained").
"""

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from libml import datasets
from libml import scenarios
from libml import trees
from libml.audit import distances
from libml.audit import membership
from libml.audit import predictions
from libml.audit import probing
from libml.audit import relearning
from libml.devices import sharding
from libml.pipeline import stage_data
from models import export
from models import lora

STAGES = ("none", "last", "all")
# Most training images of a class that probes and attacks use.
MOST_A_CLASS = 100
# The models that every audit has.
_BOTH = ("before", "after")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Audits:
  """The audits of a run, and after which stages they come.

  Attributes:
    first: Parameters before the first stage, on the host or the mesh. They must
      be a copy, because training steps donate the buffers of a state.
    stages: After which stages to audit: "none", "last", "all".
    shots: Training images of each forgotten class in relearning.
    max_steps: Most steps of relearning.
    lr: Learning rate of relearning.
    retrained: Parameters of a model trained on all images but those of classes
      that some stage forgets; None: there is none.
    seed: Of the draws of images and folds.

  Raises:
    ValueError: A field out of range.
  """

  first: Any = None
  stages: str = "none"
  shots: int = 16
  max_steps: int = 100
  lr: float = 1e-3
  retrained: Any = None
  seed: int = 0

  def __post_init__(self):
    if self.stages not in STAGES:
      raise ValueError(f"audit.stages={self.stages!r} must be one of {STAGES}.")
    for name in ("shots", "max_steps"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"audit.{name}={getattr(self, name)} must be 1 or more."
        )
    if not self.lr > 0:
      raise ValueError(f"audit.lr={self.lr} must be above 0.")

  def check(self, scenario: scenarios.Scenario) -> None:
    """Raises ValueError if no stage to audit forgets classes."""
    stages = scenario.stages
    if self.stages != "none" and not any(
      self.due(stage, len(stages)) for stage in stages
    ):
      raise ValueError(
        f"audit.stages={self.stages!r} (--audit means 'last') audits stages of "
        "which none forgets classes; set audit.stages='none' and leave --audit "
        "out, or take a scenario that forgets."
      )

  def due(self, stage: scenarios.Stage, total: int) -> bool:
    """Whether to audit after this stage.

    `stages` must ask for it, and the stage must have classes to forget.

    Args:
      stage: The finished stage.
      total: Number of stages.
    """
    last = stage.index + 1 == total
    asked = self.stages == "all" or (self.stages == "last" and last)
    return asked and bool(stage.classes.get("forget"))

  @classmethod
  def bind(
    cls,
    run: Any,
    params: Any,
    mesh: jax.sharding.Mesh,
    *,
    retrained: str | None,
    again: bool,
    **options: Any,
  ) -> Callable[..., dict[str, Any]]:
    """Returns a function, (state, stage, data) -> findings on a finished stage.

    Args:
      run: The run, for its method and scenario.
      params: Parameters before the first stage, on the mesh.
      mesh: Of the devices.
      retrained: Workdir of a finished run of the method "retrain"; None: there
        is none.
      again: Whether to audit the last stage even if `stages` is "none".
      **options: The other fields.

    Raises:
      ValueError: As `check`, or the retrained run forgot other classes.
    """
    method, scenario = run.method, run.scenario
    if again and options["stages"] == "none":
      options["stages"] = "last"
    asked = cls(**options)
    asked.check(scenario)
    if asked.stages != "none":
      own = trees.without(params, method.private)
      template, _ = lora.split(jax.eval_shape(lambda: own))
      asked = dataclasses.replace(
        asked,
        first=sharding.to_host(params, mesh),
        retrained=retrained
        and export.retrained(retrained, template, scenario.forgotten),
      )
    return functools.partial(asked.ask, method=method, scenario=scenario)

  def ask(
    self,
    state: Any,
    stage: scenarios.Stage,
    data: stage_data.StageData,
    *,
    method: Any,
    scenario: scenarios.Scenario,
  ) -> dict[str, Any]:
    """Returns what `run` finds after a stage; {} if no audit is due there."""
    if not self.due(stage, len(scenario.stages)):
      return {}
    last = stage.index + 1 == len(scenario.stages)
    # The retrained model lacks all forgotten classes: it is compared only with
    # the last stage's model, because earlier ones had not yet forgotten them.
    asked = self if last else dataclasses.replace(self, retrained=None)
    return asked.run(
      method=method,
      params=state.params,
      memory=state.memory,
      stage=stage,
      test_sets=scenario.before,
      data=data,
      earlier=scenario.stages[: stage.index],
    )

  def run(
    self,
    *,
    method: Any,
    params: Any,
    memory: Any,
    stage: scenarios.Stage,
    test_sets: Mapping[str, scenarios.TestSet],
    data: stage_data.StageData,
    earlier: Sequence[scenarios.Stage] = (),
  ) -> dict[str, Any]:
    """Returns the findings of all audits as plain data, which JSON can hold.

    audit_table.MEANINGS explains them. All processes must call this; it changes
    none of its arguments.

    Args:
      method: Of the run.
      params: Parameters after the stage, on the mesh.
      memory: Of the method.
      stage: The finished stage.
      test_sets: The scenario's `before`, which has all test images.
      data: Of the stage.
      earlier: The stages before it; their classes are forgotten, too.

    Raises:
      ValueError: The first or the retrained parameters are those of another
        network or have another number of classes, or the retrained ones hold a
        weight of the first ones.
      stage_data.Stopped: The process was asked to stop.
    """
    models = self._models(params, method)
    images = _images(stage, test_sets, earlier, self.seed)
    forgotten, retained = (_ids(images[r]) for r in ("forget", "retain"))
    known = stage.classes.get("known", (*forgotten, *retained))
    teaching = self._teaching(
      method, data, images, classes=(forgotten, retained, known)
    )
    found, taught = {}, {}
    there, target = 0.0, None
    for name, tree in models.items():
      tree = _placed(tree, params, data.mesh)
      found[name] = predictions.collect(
        method, data, images, params=tree, memory=memory, name=name
      )
      if name == "before":
        there = predictions.accuracy(found[name]["forget_test"], known)
        # A class that the first model did not know cannot be relearned.
        target = relearning.SHARE * there if there > 1 / len(known) else None
      taught[name] = teaching.curve(tree, memory, target, name=name)
      if name == "before" and target and taught[name]["steps"] is None:
        target, taught[name]["steps"] = relearning.within_reach(
          taught[name]["curve"], there
        )
    data.on_work("audit, linear probes and membership")
    return {
      "classes": [int(c) for c in forgotten],
      "seed": self.seed,
      "images": {role: len(subset) for role, subset in images.items()},
      "linear_probe": probing.linear_probe(found),
      "relearning": {
        "target": target,
        **{key: getattr(self, key) for key in ("shots", "max_steps", "lr")},
        **taught,
      },
      "membership": _membership(found, known, self.seed),
      **_distance(found, known),
      "drift": distances.drift(*(found[m]["retain_test"] for m in _BOTH)),
    }

  def _teaching(
    self,
    method: Any,
    data: stage_data.StageData,
    images: Mapping[str, datasets.Subset],
    *,
    classes: tuple[Sequence[int], ...],
  ) -> relearning.Relearning:
    """Returns the relearning of each model; classes: gone, retained, known."""
    tests = images["forget_test"]
    most = min(relearning.MOST_TESTED, len(tests))
    train = relearning.lesson(
      images["forget"], images["retain"], self.shots, self.seed
    )
    forgotten, retained, known = classes
    return relearning.Relearning(
      method=method,
      data=dataclasses.replace(
        data, train=train, seed=self.seed, mixing=None, tables={}
      ),
      tests=tests.take(most, self.seed),
      num_classes=method.num_classes,
      forgotten=forgotten,
      retained=retained,
      known=known,
      lr=self.lr,
      max_steps=self.max_steps,
    )

  def _models(self, params: Any, method: Any) -> dict[str, Any]:
    """Returns name -> parameters of the models to audit; "before" is first."""
    _check_alike(self.first, params, "first", method.model.class_heads)
    models = {"before": self.first, "after": params}
    if self.retrained is not None:
      _check_apart(self.first, self.retrained)
      models["retrained"] = _complete(self.retrained, params, method)
    return models


def _images(
  stage: scenarios.Stage,
  test_sets: Mapping[str, scenarios.TestSet],
  earlier: Sequence[scenarios.Stage],
  seed: int,
) -> dict[str, datasets.Subset]:
  """Returns role -> images: "forget" and "retain", and their test images."""
  stages = (*earlier, stage)
  gone = {c for s in stages for c in s.classes.get("forget", ())}
  kept = set(stage.classes["retain"]) - gone
  tests = [
    test_set.subset
    for test_set in test_sets.values()
    if test_set.problem is None and not (test_set.augment or test_set.trained)
  ]
  pool = datasets.Subset(())
  for subset in tests:  # test sets may share images
    pool += subset.without(pool)
  forget = datasets.Subset(())
  for part in stages:  # stages may forget the same images
    if "forget" in part.train:
      forget += part.train["forget"].without(forget)
  return {
    "forget": relearning.few(forget, MOST_A_CLASS, seed),
    "retain": relearning.few(stage.train["retain"], MOST_A_CLASS, seed),
    "forget_test": pool.select(sorted(gone)),
    "retain_test": pool.select(sorted(kept)),
  }


def _ids(subset: datasets.Subset) -> tuple[int, ...]:
  """Returns the classes of some images, in order."""
  return tuple(np.unique(subset.labels).tolist())


def _membership(found, known, seed):
  scores = {
    name: {
      role: membership.scores(
        predictions.probabilities(part["logits"], known), part["label"]
      )
      for role, part in parts.items()
    }
    for name, parts in found.items()
  }
  return {
    name: membership.membership(parts, seed=seed)
    for name, parts in scores.items()
  }


def _distance(found, known):
  if "retrained" not in found:
    return {}
  retrained = found["retrained"]
  return {
    "distance": {
      name: distances.to_retrained(found[name], retrained, known)
      for name in _BOTH
    }
  }


def _check_alike(
  tree: Any, params: Any, what: str, heads: Sequence[str]
) -> None:
  """Raises ValueError if parameters are those of another network."""
  theirs, ours = (
    {name: leaf.shape for name, leaf in trees.flatten(t).items()}
    for t in (tree, params)
  )
  other = sorted(n for n in {*ours, *theirs} if ours.get(n) != theirs.get(n))
  for name in other:
    if trees.holder(name, heads) and name in ours and name in theirs:
      raise ValueError(
        f"The {what} model has {theirs[name][-1]} classes, and the audited "
        f"model {ours[name][-1]} ({name}); {_remedy(what, 'data')}"
      )
  if other:
    name = other[0]
    raise ValueError(
      f"The {what} model has other parameters than the audited model: {name} "
      f"has the shape {theirs.get(name)} there and {ours.get(name)} here "
      f"(None: it is missing), and {len(other) - 1} more differ; "
      f"{_remedy(what, 'config.model')}"
    )


def _remedy(what: str, same: str) -> str:
  if what == "retrained":
    return f"set audit.retrained to a run of 'retrain' with the same {same}."
  return "audit the run that started from these parameters."


def _check_apart(first: Any, retrained: Any) -> None:
  """Raises ValueError if a retrained model shares a weight with the first."""
  ours = trees.flatten(first)
  for name, leaf in trees.flatten(retrained).items():
    # Vectors may be equal: many start as the same constant.
    if leaf.ndim > 1 and np.array_equal(leaf, ours[name]):
      raise ValueError(
        f"The retrained model has the first model's weights in {name}, so it "
        "saw what was forgotten; give audit.retrained a run of the method "
        "'retrain'."
      )


def _complete(tree: Any, params: Any, method: Any) -> Any:
  """Returns parameters with the leaves that they lack; adapters are zeros."""
  flat = trees.flatten(tree)
  added = {}
  for name, leaf in trees.flatten(params).items():
    if name not in flat and "/lora_" in name:
      added[name] = np.zeros(leaf.shape, leaf.dtype)
    elif name.partition("/")[0] in method.private:
      added[name] = leaf
  leaves = {**flat, **added}
  _check_alike(leaves, params, "retrained", method.model.class_heads)
  return trees.update(params, leaves)


def _placed(tree: Any, like: Any, mesh: jax.sharding.Mesh) -> Any:
  """Returns parameters with the shardings of `like`."""
  pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True)
  if all(getattr(x, "sharding", None) == p.sharding for x, p in pairs):
    return tree
  tree = sharding.place(tree, (), mesh)
  return jax.tree.map(lambda x, p: jax.device_put(x, p.sharding), tree, like)
