"""What a problem decides for the rest: its metric, mask and hidden targets."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from toy import tiny

import main
from libml import problems
from libml import scenarios
from libml.problems.classification import Classification


@dataclasses.dataclass(frozen=True)
class Regions(Classification):
  """Another problem than the methods serve, with a metric of its own."""

  name = "regions"
  metric = "overlap"


def test_a_method_refuses_a_problem_that_it_does_not_serve(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(problems.PROBLEMS, "regions", Regions)
  config = tiny()
  config.problem.name = "regions"
  message = (
    "L2P serves classification, and the problem is regions; take another"
    " method, or another problem.name."
  )
  with pytest.raises(ValueError, match=message):
    main.execute(config, tmp_path)


def test_classification_prepares_the_mask_of_a_test_set():
  constants = Classification().constants((1, 3), 5)
  np.testing.assert_array_equal(constants["allowed"], [0, 1, 0, 1, 0])


def test_padding_counts_in_no_metric():
  logits = jnp.array([[2.0, 0.0], [2.0, 0.0], [9.0, 0.0]])
  batch = {
    "label": jnp.array([0, 1, 0]),
    "mask": jnp.array([True, True, False]),
    "allowed": jnp.ones(2, bool),
  }
  problem = Classification()
  whole = problem.measure({"logits": logits}, batch)
  rows = {key: batch[key][:2] for key in ("label", "mask")}
  alone = problem.measure({"logits": logits[:2]}, {**batch, **rows})
  assert whole == alone
  assert problem.summarize([whole])["accuracy"] == 0.5


def test_summaries_are_named_by_the_problem_s_metric():
  row = {"overlap": 0.5, "count": 4}
  names = ("learn", "forget", "retain")
  kinds = [
    (scenarios.summarize_tasks, ("task_0",), "avg_overlap"),
    (scenarios.summarize_test, ("test",), "curve_mean_overlap"),
    (scenarios.summarize_forgetting, ("kept",), "overlap_retain"),
    (
      lambda *given: scenarios.summarize_swapping(*given, goals=("learn",)),
      [f"{part}{name}" for part in ("", "train_") for name in names],
      "overlap_learn",
    ),
  ]
  for summarize, test_sets, name in kinds:
    rows = [{test_set: {"": row} for test_set in test_sets}]
    found = summarize(rows, "", Regions.metric)
    assert found[name] == 0.5 and not any("acc" in key for key in found)
