"""Training steps against the reference's figures: tests/golden/l2p."""

import json

import flax.traverse_util
import jax
import jax.numpy as jnp
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
from models import vit

CASES = (
  "l2p_step",
  "l2p_step_sgd",
  "l2p_step_weight_decay",
  "l2p_step_keep_optimizer",
  "l2p_step_prompt_mask",
  "dualprompt_step",
)
GROUPS = (
  ("prompt", r"prompt_pool/.*|prefix|reweight"),
  ("head", r"head/.*"),
  ("backbone", r".*"),
)


def _method(config):
  model = vit.build(
    num_classes=config["classes"],
    image_size=config["image"],
    patch_size=config["patch"],
    width=config["hidden"],
    mlp_dim=config["mlp"],
    num_heads=config["heads"],
    depth=config["layers"],
    classifier=config["classifier"],
  )
  return l2p.L2P(
    model=model,
    problem=classification.Classification(),
    num_classes=config["classes"],
    num_stages=config["tasks"],
    e_layers=tuple(config["e_layers"]),
    e_prefix=config["e_prefix"],
    pool_size=config["pool"],
    length=config["length"],
    top_k=config["top_k"],
    g_layers=tuple(config.get("g_layers", ())),
    g_prefix=config.get("g_prefix", True),
    g_length=config.get("g_length", 1),
    vote_group=config["batch"],
    prompt_mask=config["use_prompt_mask"],
    transfer_prompts=config["shared_prompt_pool"],
    transfer_keys=config["shared_prompt_key"],
    key_loss=config["pull_constraint_coeff"],
    mask_classes=config["train_mask"],
    restart_optimizer=config["reinit_optimizer"],
  )


def _optimizer(config, clip_scope):
  group = {
    "name": config["optim"],
    "lr": config["learning_rate"],
    "weight_decay": config["weight_decay"],
  }
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
    probes={},
    classes={"learn": seen[-size:], "seen": seen},
  )


def _replay(case, clip_scope="all"):
  """Yields (state before the step, its metrics, state after) of each step."""
  config = json.loads(str(case["in/config"]))
  method, optimizer = _method(config), _optimizer(config, clip_scope)
  params = flax.traverse_util.unflatten_dict(
    {
      tuple(k.removeprefix("params/").split("/")): v
      for k, v in case.items()
      if k.startswith("params/")
    }
  )
  params = jax.tree.map(jnp.asarray, params)
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
  """Holds leaves to the golden README's tolerances.

  Adam divides a gradient by its own size, so an entry whose first gradient is
  within the rounding that the README saw (3e-6) is held to a tenth of the
  rate only. One of 1,036 needs it, on jax 0.12: 1.3e-4 instead of 1e-4.
  """
  leaves = trees.flatten(params)
  differences, noisy = [], []
  for key, wanted in case.items():
    if key.startswith(prefix):
      name = key.removeprefix(prefix)
      difference = np.abs(np.asarray(leaves[name]) - wanted)
      first = np.abs(case[f"grad/{name}"])
      differences.append(difference.ravel())
      noisy.append(((first > 0) & (first < 3e-6)).ravel())
  differences, noisy = np.concatenate(differences), np.concatenate(noisy)
  if sgd:
    assert differences.max() <= 2e-6
    return
  assert noisy.mean() <= 0.005
  assert differences[~noisy].max() <= 1e-4
  assert differences.max() <= 1e-3
  assert np.mean(differences <= 5e-6) >= 0.995


@pytest.mark.parametrize("name", CASES)
def test_steps(golden, name):
  case = golden("l2p", name)
  config = json.loads(str(case["in/config"]))
  decay, sgd = config["weight_decay"], config["optim"] == "sgd"
  rates = {f"learning_rate/{group}" for group in ("prompt", "head")}
  for i, replayed in enumerate(_replay(case)):
    method, starts, before, batch, seen, after = replayed
    if starts:
      _compare_params(
        case, f"task{case['in/task'][i]}_start/", before.params, sgd=False
      )
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
  query = jax.jit(method.find_query)(after.params, after.memory, batch["image"])
  np.testing.assert_allclose(
    query, case["in/cls_features"][-1], atol=5e-5, rtol=0
  )
  reading = jax.jit(method.predict)(after.params, after.memory, batch)[""]
  for key, tolerance in (("logits", 1e-4), ("sim", 1e-5)):
    np.testing.assert_allclose(
      reading[key], case[f"out/eval_last/{key}"], atol=tolerance, rtol=0
    )
  np.testing.assert_allclose(
    reading["features"], case["out/eval_last/pre_logits"], atol=1e-4, rtol=0
  )
  np.testing.assert_array_equal(
    reading["prompt_idx"], case["out/eval_last/prompt_idx"]
  )


@pytest.mark.parametrize("name", CASES)
def test_first_gradient(golden, name):
  case = golden("l2p", name)
  decay = json.loads(str(case["in/config"]))["weight_decay"]
  method, _, state, batch, _, _ = next(_replay(case))

  def total(params):
    loss, _ = method.loss(
      params, state.memory, {"train": batch}, jax.random.key(0)
    )
    return loss + _l2(params, decay)

  grads = trees.flatten(jax.jit(jax.grad(total))(state.params))
  wanted = {
    key.removeprefix("grad/"): value
    for key, value in case.items()
    if key.startswith("grad/")
  }
  for key, value in wanted.items():
    np.testing.assert_allclose(grads[key], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [c for c in CASES if c != "l2p_step_sgd"])
def test_clipping_over_trained_parameters_only(golden, name):
  case = golden("l2p", name)
  decay = json.loads(str(case["in/config"]))["weight_decay"]
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


def test_frozen_weights_keep_their_bits_and_have_no_moments(golden):
  case = golden("l2p", "l2p_step")
  *_, (_, _, _, _, _, state) = _replay(case)
  for name, leaf in trees.flatten(state.params).items():
    if not name.startswith(("prompt_pool", "head")):
      assert np.asarray(leaf).tobytes() == case[f"params/{name}"].tobytes()
  trained = ("prompt", "head")
  moments = [n for n, x in trees.flatten(state.opt_state).items() if x.ndim]
  assert moments and all(
    any(f"/{t}" in n for t in ("prompt_pool", *trained)) for n in moments
  )
  sizes = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
  own = sum(
    leaf.size
    for name, leaf in trees.flatten(state.params).items()
    if name.startswith(("prompt_pool", "head"))
  )
  assert sizes == 2 * own


def test_schedules(golden):
  case = golden("l2p", "lr_schedule")
  for name, c in json.loads(str(case["in/config"])).items():
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


def test_class_incremental_metrics(golden):
  case = golden("l2p", "cl_metrics")
  for run, matrix in enumerate(case["in/accuracy"]):
    for task in range(matrix.shape[0]):
      got = metrics.class_incremental(matrix, np.ones(5), task)
      for key in ("avg_acc", "forgetting", "backward", "learning_acc"):
        wanted = case[f"out/{key}"][run, task]
        np.testing.assert_allclose(
          got.get(key, np.nan), wanted, atol=1e-12, rtol=0
        )
