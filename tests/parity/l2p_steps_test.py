"""Training steps against the reference's figures: tests/golden/l2p."""

import jax
import jax.numpy as jnp
import l2p_toy as toy
import numpy as np
import pytest

from libml import optim
from libml import scenarios
from libml import trees
from libml.optim import schedules
from libml.problems import classification
from libml.scenarios import metrics
from libml.train import steps
from methods import l2p

FIGURES = {
  "l2p/l2p_step": {},
  "l2p/l2p_step_sgd": {},
  "l2p/l2p_step_weight_decay": {},
  "l2p/l2p_step_keep_optimizer": {},
  "l2p/l2p_step_prompt_mask": {},
  "l2p/dualprompt_step": {},
  "l2p/lr_schedule": {},
  "l2p/cl_metrics": {},
}
CASES = [name.removeprefix("l2p/") for name in FIGURES if "step" in name]
GROUPS = (
  ("prompt", r"prompt_pool/.*|prefix|reweight"),
  ("head", r"head/.*"),
  ("backbone", r".*"),
)


def _method(config):
  assert config["embedding_key"] == "cls"
  return l2p.L2P(
    **toy.options(config),
    model=toy.model(config, classifier=config["classifier"]),
    problem=classification.Classification(),
    num_classes=config["classes"],
    num_stages=config["tasks"],
    vote_group=config["batch"] if config["batchwise_prompt"] else 0,
    prompt_mask=config["use_prompt_mask"],
    transfer_prompts=config["shared_prompt_pool"],
    transfer_keys=config["shared_prompt_key"],
    key_loss=config["pull_constraint"] * config["pull_constraint_coeff"],
    mask_classes=config["train_mask"],
    restart_optimizer=config["reinit_optimizer"],
  )


def _optimizer(config, clip_scope):
  group = {
    "name": config["optim"],
    "lr": config["learning_rate"],
    "weight_decay": config["weight_decay"],
  }
  if "sgd_momentum" in config:
    group["momentum"] = config["sgd_momentum"]
  return optim.build(
    groups=GROUPS,
    epochs=1,
    clip_norm=config["grad_clip_max_norm"],
    clip_scope=clip_scope,
    l2=config["weight_decay"],
    prompt=group,
    head=group,
    backbone=None if config["freeze_part"] else group,
  )


def _stage(task, config):
  size = config["classes"] // config["tasks"]
  seen = tuple(range(size * (task + 1)))
  return scenarios.Stage(
    index=task,
    goal="learn",
    train={},
    test_sets={},
    classes={"learn": seen[-size:], "seen": seen},
  )


def _replay(case, clip_scope="all"):
  """Yields (state before the step, its metrics, state after) of each step."""
  config = toy.config(case)
  method, optimizer = _method(config), _optimizer(config, clip_scope)
  params = jax.tree.map(jnp.asarray, toy.tree(case, "params/"))
  state = steps.first_state(method, optimizer, params, jax.random.key(0))
  step = jax.jit(
    steps.make_train_step(method.loss, method.extra_args, optimizer)
  )
  previous = None
  for number, task in enumerate(case["in/task"]):
    if task != previous:
      state = method.before_stage(state, _stage(int(task), config), None)
      state = steps.begin_stage(
        state,
        0,
        1,
        jax.random.key(0),
        tx=optimizer.tx,
        restart=method.restart_optimizer,
      )
    starts = task != previous and previous is not None
    previous = task
    batch = {
      "image": jnp.asarray(case["in/images"][number]),
      "label": jnp.asarray(case["in/labels"][number]),
    }
    before = state
    state, seen = step(state, {"train": batch})
    yield method, starts, before, batch, seen, state


def _l2(params, weight):
  squares = [jnp.sum(p**2) for p in jax.tree.leaves(params) if p.ndim > 1]
  return 0.5 * weight * sum(squares)


def _compare_params(case, prefix, params, sgd):
  """Holds leaves to the golden README's tolerances."""
  leaves = trees.flatten(params)
  differences = [
    np.abs(np.asarray(leaves[name]) - wanted).ravel()
    for name, wanted in case.part(prefix).items()
  ]
  differences = np.concatenate(differences)
  if sgd:
    assert differences.max() <= 2e-6
    return
  assert differences.max() <= 1e-4
  assert np.mean(differences <= 5e-6) >= 0.995


def _compare_choice(case, number, method, state, image):
  """Compares the query of a step, and the prompts that it chooses."""
  query = jax.jit(method.find_query)(state.params, state.memory, image)
  wanted = case["in/cls_features"][number]
  np.testing.assert_allclose(query, wanted, atol=5e-5, rtol=0)
  task = case["in/task"][number] if method.prompt_mask else None
  _, chosen = method.choose(
    state.params, query, task=task, vote_group=method.vote_group or None
  )
  np.testing.assert_array_equal(
    chosen["prompt_idx"], case["out/prompt_idx"][number]
  )


def _compare_evaluation(case, method, state, batch):
  """Compares what the last images give with the final parameters."""
  reading = jax.jit(method.predict)(state.params, state.memory, batch)[""]
  theirs = case.part("out/eval_last/")
  theirs["features"] = theirs.pop("pre_logits")
  np.testing.assert_array_equal(reading["prompt_idx"], theirs.pop("prompt_idx"))
  tolerances = {"logits": 1e-4, "features": 1e-4, "sim": 1e-5}
  tolerances["reduce_sim"] = 1e-5
  assert theirs.keys() == tolerances.keys()
  for key, value in theirs.items():
    np.testing.assert_allclose(
      reading[key], value, atol=tolerances[key], rtol=0, err_msg=key
    )


@pytest.mark.parametrize("name", CASES)
def test_steps(golden, name):
  case = golden("l2p", name)
  config = toy.config(case)
  decay, sgd = config["weight_decay"], config["optim"] == "sgd"
  rates = {f"learning_rate/{group}" for group in ("prompt", "head")}
  for i, replayed in enumerate(_replay(case)):
    method, starts, before, batch, seen, after = replayed
    if starts:
      _compare_params(
        case, f"task{case['in/task'][i]}_start/", before.params, sgd=False
      )
    if not i:
      _compare_gradient(case, method, before, batch)
    _compare_choice(case, i, method, before, batch["image"])
    loss = seen["loss"] + _l2(before.params, decay)
    np.testing.assert_allclose(loss, case["out/loss"][i], atol=1e-5, rtol=0)
    np.testing.assert_allclose(
      seen["l2_grads"], case["out/grad_norm"][i], rtol=1e-5
    )
    assert seen["train_accuracy"] == case["out/accuracy"][i]
    np.testing.assert_allclose(
      seen["key_similarity"], case["out/reduce_sim"][i], atol=1e-5, rtol=0
    )
    for rate in rates:
      np.testing.assert_allclose(
        seen[rate], case["out/learning_rate"][i], rtol=1e-6
      )
    _compare_params(case, f"after{i + 1}/", after.params, sgd)
  _compare_evaluation(case, method, after, batch)
  _compare_frozen(case, after)


def _compare_gradient(case, method, state, batch):
  """Compares the gradient before clipping."""
  decay = toy.config(case)["weight_decay"]

  def total(params):
    loss, _ = method.loss(
      params, state.memory, {"train": batch}, jax.random.key(0)
    )
    return loss + _l2(params, decay)

  grads = trees.flatten(jax.jit(jax.grad(total))(state.params))
  for key, value in case.part("grad/").items():
    np.testing.assert_allclose(grads[key], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_clipping_over_trained_parameters_only(golden, name):
  case = golden("l2p", name)
  if not toy.config(case)["freeze_part"]:  # then this clips nothing else
    assert not case.part("alt_trainable_clip/")
    return
  decay = toy.config(case)["weight_decay"]
  prefix = "alt_trainable_clip/"
  after = None
  for i, replayed in enumerate(_replay(case, clip_scope="trainable")):
    _, _, before, _, seen, after = replayed
    np.testing.assert_allclose(
      seen["loss"] + _l2(before.params, decay),
      case[f"{prefix}loss"][i],
      atol=1e-5,
      rtol=0,
    )
    np.testing.assert_allclose(
      seen["l2_grads"], case[f"{prefix}grad_norm"][i], rtol=1e-5
    )
  last = len(case["in/task"])
  _compare_params(case, f"{prefix}after{last}/", after.params, sgd=False)


def _compare_frozen(case, state):
  """Holds weights without a stored gradient to their bits, without moments."""
  trained = tuple(case.part("grad/"))
  params = trees.flatten(state.params)
  for name, leaf in params.items():
    if name not in trained:
      assert np.asarray(leaf).tobytes() == case[f"params/{name}"].tobytes()
  moments = [n for n, x in trees.flatten(state.opt_state).items() if x.ndim]
  assert moments and all(n.endswith(trained) for n in moments)
  sizes = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
  per_weight = 1 if toy.config(case)["optim"] == "sgd" else 2
  assert sizes == per_weight * sum(params[name].size for name in trained)


def test_schedules(golden):
  case = golden("l2p", "lr_schedule")
  for name, c in toy.config(case).items():
    rate = schedules.build(
      c["schedule"],
      lr=c["base_learning_rate"],
      epochs=c["num_epochs"],
      warmup_epochs=c["warmup_epochs"],
      min_lr=c["min_learning_rate"],
    )
    got = [rate(step / c["steps_per_epoch"]) for step in case["in/step"]]
    np.testing.assert_allclose(
      got, case[f"out/{name}"], atol=1e-6 * c["base_learning_rate"], rtol=0
    )


def test_schedules_end_at_their_floor():
  rate = schedules.build("cosine", lr=0.1, epochs=5, warmup_epochs=1)
  assert rate(6.0) == 0.0  # the reference's rises again past its end


def _compare_metrics(case, prefix, run, task, got):
  for key in ("avg_acc", "forgetting", "backward", "learning_acc"):
    wanted = case[f"{prefix}{key}"][run, task]
    np.testing.assert_allclose(
      got.get(key, np.nan), wanted, atol=1e-12, rtol=0, err_msg=key
    )


def test_class_incremental_metrics(golden):
  case = golden("l2p", "cl_metrics")
  for run, matrix in enumerate(case["in/accuracy"]):
    for task in range(len(matrix)):
      got = metrics.class_incremental(matrix, np.ones(len(matrix)), task)
      _compare_metrics(case, "out/", run, task, got)


def test_class_incremental_metrics_of_a_single_test_set(golden):
  case = golden("l2p", "cl_metrics")
  for run, matrix in enumerate(case["in/accuracy"]):
    single = np.zeros_like(matrix)
    single[0] = matrix[0]
    for task in range(len(matrix)):
      got = {
        **metrics.class_incremental(single, np.ones(len(matrix)), task),
        "avg_acc": metrics.single_test(matrix[0, : task + 1])["avg_acc"],
      }
      _compare_metrics(case, "out/single_eval_set_nan/", run, task, got)
