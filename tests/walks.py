"""A run, and all that it went through."""

import collections

import numpy as np
import pytest

import main
from libml import trees
from libml.train.observer import Observer
from libml.train.walk import Interrupted


def host(state):
  """Returns a state's parameters and memory on the host, by name."""
  tree = {"params": state.params, "memory": state.memory}
  return {k: np.array(v) for k, v in trees.flatten(tree).items()}


class _Untrained(Observer):
  def on_stage(self, stage, event, state):
    if event == "begin":
      pytest.fail("training began")


def untrained(config, workdir):
  """Runs a config, and fails where training begins."""
  main.execute(config, workdir, observer=_Untrained())


class Watcher(Observer):
  """Keeps what there was to see, task by task.

  Attributes:
    run: The run.
    start: Its first state, as `host` gives it.
    begun: States when a round of training begins.
    trained: States after a round's last step.
    merged: States that are measured.
    metrics: Of each step.
    sums: Of each pass over images, (stage, name, {name: sum}).
    here: (event or name of a pass, stage) that began last.
    state: The last one; None where the run was stopped.
    record: The results; None where the run was stopped.
    stopped: Where it was.
  """

  def __init__(self):
    self.run, self.start, self.state = None, None, None
    self.begun, self.trained, self.merged = [], [], []
    self.metrics, self.sums = [], []
    self.here, self.record, self.stopped = None, None, None

  def on_start(self, run, state):
    self.run, self.start = run, host(state)

  def on_stage(self, stage, event, state):
    kept = {"train": self.begun, "trained": self.trained}
    kept["measure"] = self.merged
    if event in kept:
      kept[event].append(host(state))
    self.here, self.state = (event, stage), state

  def on_step(self, stage, step, metrics):
    self.metrics.append(metrics)

  def on_pass(self, stage, name, total):
    if total is None:
      self.here = (name, stage)
    else:
      self.sums.append((stage, name, trees.flatten(total)))


class Stopper(Watcher):
  """Asks for a stop in a part of a stage, when it is asked there so often.

  Attributes:
    asked: Part, as `here` names it -> how often it was asked there.
  """

  def __init__(self, part=None, stage=None, count=None):
    super().__init__()
    self.asked, self._at = collections.Counter(), ((part, stage), count)

  def should_stop(self):
    self.asked[self.here] += 1
    return (self.here, self.asked[self.here]) == self._at


def watch(config, workdir, should_stop=lambda: False, seen=None):
  """Runs a config; returns the Watcher that saw it.

  Args:
    config: Of a method.
    workdir: Of the run.
    should_stop: Asked after each batch.
    seen: A Watcher of one's own.
  """
  seen = seen or Watcher()
  try:
    seen.record = main.execute(config, workdir, should_stop, observer=seen)
  except Interrupted as stop:
    seen.state, seen.stopped = None, str(stop)
  return seen


def stop_in(config, workdir, *at):
  """Runs a config up to a part, stage and count; returns the Stopper."""
  stopper = Stopper(*at)
  return watch(config, workdir, stopper.should_stop, stopper)
