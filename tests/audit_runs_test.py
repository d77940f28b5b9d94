"""Audits of finished runs: what is kept, what is refused."""

import shutil

import numpy as np
import pytest

import main
from configs import digits_baselines
from configs import digits_reference
from libml.audit import audits
from methods import METHODS


def config(**asked):
  """Returns the smoke run of a head that hides, and what to ask of it."""
  made = digits_baselines.get_config("smoke,method=hide_head")
  made.export = True
  made.audit.update({"shots": 2, "max_steps": 1, **asked})
  return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """Returns the workdir of a run that nobody audited, and its results."""
  workdir = tmp_path_factory.mktemp("finished")
  return workdir, main.execute(config(), workdir)


def test_finished_run_is_asked_later_and_keeps_what_it_said(finished):
  workdir, plain = finished
  assert not any(plain["audits"])
  asked = main.execute(config(stages="last"), workdir)
  *earlier, last = asked["audits"]
  assert not any(earlier) and len(asked["audits"]) == plain["stages"]
  assert last["linear_probe"] and last["relearning"]["max_steps"] == 1
  assert {**asked, "audits": 0} == {**plain, "audits": 0}
  shutil.rmtree(workdir / "export")
  assert main.execute(config(), workdir)["audits"] == asked["audits"]


def test_nothing_to_audit_leaves_nothing(tmp_path):
  with pytest.raises(ValueError, match="holds no finished run to audit"):
    main.execute(config(), tmp_path, audit=True)
  assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_run_that_learns_is_refused_before_it_trains(tmp_path):
  learns = digits_reference.get_config("smoke,method=head")
  learns.audit.stages = "last"
  with pytest.raises(ValueError, match="which none forgets classes"):
    main.execute(learns, tmp_path)
  assert not list(tmp_path.glob("checkpoints/*"))


def test_sample_is_no_retrained_model(finished):
  workdir, _ = finished
  with pytest.raises(ValueError, match="saw only a sample of the images"):
    main.execute(config(retrained=str(workdir)), workdir, audit=True)


def test_model_with_the_first_weights_is_not_retrained():
  first = {"a": np.eye(2), "b": np.zeros(2)}
  with pytest.raises(ValueError, match="first model's weights in a"):
    audits._check_apart(first, first)
  audits._check_apart(first, {**first, "a": 2 * np.eye(2)})


def test_lirf_leaves_earlier_requests_alone():
  made = digits_baselines.get_config("smoke,method=lirf")
  method = main.build_method(made, 4, 3)
  masks = {"known": [1] * 4, "forget": [0, 1, 0, 0], "old": [0, 0, 0, 1]}
  memory = {k: np.array(v, bool) for k, v in masks.items()}
  assert isinstance(method, METHODS["lirf"])
  assert method.columns(memory)[1].tolist() == [True, False, True, False]
