"""Scenarios: in which order data arrive, and what is measured after each."""

from collections.abc import Callable

from libml.scenarios.domains import domain_incremental
from libml.scenarios.domains import summarize_test
from libml.scenarios.forgetting import forgetting
from libml.scenarios.forgetting import summarize_forgetting
from libml.scenarios.stage import Arrival
from libml.scenarios.stage import Row
from libml.scenarios.stage import Scenario
from libml.scenarios.stage import Stage
from libml.scenarios.stage import TestSet
from libml.scenarios.stage import learn_in_order
from libml.scenarios.stage import metric_matrix
from libml.scenarios.swapping import summarize_swapping
from libml.scenarios.swapping import swapping
from libml.scenarios.task_free import gaussian
from libml.scenarios.tasks import class_incremental
from libml.scenarios.tasks import class_order
from libml.scenarios.tasks import joined
from libml.scenarios.tasks import summarize_tasks
from libml.scenarios.tasks import task_matrix

__all__ = [
  "SCENARIOS",
  "Arrival",
  "Row",
  "Scenario",
  "Stage",
  "TestSet",
  "class_incremental",
  "class_order",
  "domain_incremental",
  "forgetting",
  "gaussian",
  "joined",
  "learn_in_order",
  "metric_matrix",
  "summarize_forgetting",
  "summarize_swapping",
  "summarize_tasks",
  "summarize_test",
  "swapping",
  "task_matrix",
]

SCENARIOS: dict[str, Callable[..., Scenario]] = {
  "class_incremental": class_incremental,
  "domain_incremental": domain_incremental,
  "forgetting": forgetting,
  "gaussian": gaussian,
  "joined": joined,
  "swapping": swapping,
}
