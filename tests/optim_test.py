"""Optimizers: who is trained, who is counted, and what a step costs."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import main
from configs import cifar100_l2p
from libml import optim
from libml.devices import collectives
from libml.devices import sharding
from libml.train import steps
from libml.train import weights

GROUPS = (("head", r"head/.*"), ("body", r".*"))
PARAMS = {
  "head": {"kernel": jnp.full((3, 2), 2.0), "bias": jnp.ones(2)},
  "body": {"kernel": jnp.full((3, 3), 3.0)},
}
GRADS = jax.tree.map(lambda p: 2 * jnp.ones_like(p), PARAMS)
PLAIN = {"name": "sgd", "momentum": 0.0, "lr": 0.1}


def update(params=PARAMS, grads=GRADS, *, epoch=0.0, groups=GROUPS, **settings):
  """Returns one step's updates and the state after it."""
  settings = {"head": PLAIN, "body": None, **settings}
  optimizer = optim.build(groups=groups, epochs=4, **settings)
  state = optimizer.tx.init(params)
  return optimizer.tx.update(grads, state, params, epoch=epoch)


def test_none_freezes_and_holds_no_moments():
  updates, state = update(head={"name": "adam", "lr": 0.1})
  assert (updates["body"]["kernel"] == 0).all()
  assert (updates["head"]["kernel"] < 0).all()
  moments = sum(x.size for x in jax.tree.leaves(state) if x.ndim)
  assert moments == 2 * (6 + 2)  # Adam's two, for the head alone


def test_each_group_has_its_own_rate():
  updates, _ = update(body={**PLAIN, "lr": 0.01})
  np.testing.assert_allclose(updates["head"]["bias"], -0.2)
  np.testing.assert_allclose(updates["body"]["kernel"], -0.02)


def test_first_matching_pattern_wins():
  groups = (("body", r".*/kernel"), ("head", r"head/.*"))
  updates, _ = update(groups=groups)
  assert (updates["head"]["kernel"] == 0).all()
  assert (updates["head"]["bias"] != 0).all()


def test_proximal_sgd_shrinks_a_group_to_zero():
  updates, state = update(
    head={"name": "proximal_sgd", "lr": 0.1, "momentum": 0.0},
    lasso=lambda name: name.split("/")[0],
  )
  # Alpha is the method's to give; without it the step is SGD's.
  np.testing.assert_allclose(updates["head"]["kernel"], -0.2)
  assert optim.last_metrics(state)["zero_groups"] == 0


def test_unmatched_parameter_is_named():
  optimizer = optim.build(groups=GROUPS[:1], epochs=1, head=PLAIN)
  with pytest.raises(ValueError, match="'body/kernel' matches none.*'head'"):
    optimizer.tx.init(PARAMS)


UNMATCHED = {
  "no such name": (
    (("prompt", r"prompt/.*"), *GROUPS),
    {"prompt": PLAIN},
    r"trains the group 'prompt', .*'prompt/\.\*' gets none of the 3 param.*; "
    r"they are called 'body/kernel' \(in group 'body'\), .*prompt=None",
  ),
  "another spelling": (
    (("heads", r"heads/.*"), ("body", r".*")),
    {"heads": PLAIN, "head": None},
    r"'heads/\.\*' .*; similar names are 'head/bias' \(in group 'body'\)",
  ),
  "taken by an earlier group": (
    (("all", r".*"), *GROUPS),
    {"all": PLAIN},
    r"group 'head', .*; an earlier group takes 'head/bias' \(in group 'all'\)",
  ),
}


@pytest.mark.parametrize("case", UNMATCHED)
def test_trained_group_without_a_parameter_is_refused(case):
  groups, settings, message = UNMATCHED[case]
  settings = {"head": PLAIN, "body": None, **settings}
  settings = {name: settings[name] for name, _ in groups}
  optimizer = optim.build(groups=groups, epochs=1, **settings)
  with pytest.raises(ValueError, match=message):
    optimizer.check({}, PARAMS)


def test_frozen_group_may_have_no_parameter():
  groups = (("prompt", r"prompt/.*"), *GROUPS)
  settings = {"prompt": None, "head": PLAIN, "body": None}
  optim.build(groups=groups, epochs=1, **settings).check({}, PARAMS)


def test_prompts_that_the_options_leave_out_are_not_trained(tmp_path):
  config = tiny()
  config.method.update({"e_layers": (), "key_loss": 0.0})
  with pytest.raises(
    ValueError, match=r"trains the group 'prompt', .*reweight"
  ):
    main.execute(config, tmp_path)


@pytest.mark.parametrize("name", ["sgd", "proximal_sgd"])
def test_transforms_of_the_method_end_each_chain_of_a_trained_group(name):
  updates, _ = update(
    head={**PLAIN, "name": name},
    lasso=lambda name: name.split("/")[0],
    transforms=(optax.scale(10.0),),
  )
  # The proximal step is the last of its group: nothing may rescale it.
  factor = 10.0 if name == "sgd" else 1.0
  np.testing.assert_allclose(updates["head"]["bias"], factor * -0.2)
  assert (updates["body"]["kernel"] == 0).all()


@pytest.mark.parametrize(
  ("scope", "norm"), [("trainable", 2 * 8**0.5), ("all", 2 * 17**0.5)]
)
def test_clip_counts_what_its_scope_says(scope, norm):
  updates, state = update(clip_norm=1.0, clip_scope=scope)
  np.testing.assert_allclose(
    optim.last_metrics(state)["l2_grads"], norm, rtol=1e-6
  )
  np.testing.assert_allclose(updates["head"]["bias"], -0.2 / norm, rtol=1e-5)


def test_small_gradients_are_not_clipped():
  updates, _ = update(clip_norm=100.0)
  np.testing.assert_allclose(updates["head"]["bias"], -0.2)


def test_columns_end_at_length_one():
  updates, _ = update(head={**PLAIN, "normalize_columns": True})
  kernel = PARAMS["head"]["kernel"] + updates["head"]["kernel"]
  np.testing.assert_allclose(jnp.linalg.norm(kernel, axis=0), 1, rtol=1e-6)
  np.testing.assert_allclose(updates["head"]["bias"], -0.2)  # no matrix


def test_weight_decay_is_decoupled():
  updates, _ = update(head={**PLAIN, "weight_decay": 0.5})
  np.testing.assert_allclose(updates["head"]["bias"], -0.1 * (2 + 0.5 * 1))
  np.testing.assert_allclose(updates["head"]["kernel"], -0.1 * (2 + 0.5 * 2))


def test_l2_joins_the_gradient_of_matrices_before_clipping():
  updates, _ = update(l2=0.5, clip_norm=1.0)
  norm = math.sqrt(6 * (2 + 0.5 * 2) ** 2 + 2 * 2**2)
  kernel, bias = updates["head"]["kernel"], updates["head"]["bias"]
  np.testing.assert_allclose(kernel, -0.1 * 3 / norm, rtol=1e-5)
  np.testing.assert_allclose(bias, -0.1 * 2 / norm, rtol=1e-5)


def test_schedule_reaches_the_update_and_the_log():
  linear = {**PLAIN, "schedule": "linear"}
  updates, state = update(head=linear, epoch=1.0, batch_size=1, lr_batch_size=2)
  rate = 0.1 * 0.5 * (1 - 1 / 4)
  np.testing.assert_allclose(updates["head"]["bias"], -rate * 2, rtol=1e-6)
  logged = optim.last_metrics(state)
  np.testing.assert_allclose(logged["learning_rate/head"], rate, rtol=1e-6)
  assert "learning_rate/body" not in logged


def scale_by_memory(name="factor"):
  """Multiplies by an array that the method hands to each step."""

  def change(updates, state, params=None, **extra):
    return jax.tree.map(lambda u: u * extra[name], updates), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), change
  )


def tiny(**optimizer):
  """Returns L2P's smoke config with one layer."""
  config = cifar100_l2p.get_config("smoke")
  config.model.depth = 1
  config.optimizer.update(optimizer)
  return config


def lower(config, method=None):
  """Returns a train step on two devices, its state and its batch."""
  method = method or main.build_method(config, 6, 3)
  optimizer = main.build_optimizer(config, method)
  params, _ = weights.first(config, method.model)
  params = method.init_params(params, jax.random.key(0))
  state = steps.first_state(method, optimizer, params, jax.random.key(0))
  mesh = sharding.make_mesh()
  state = sharding.place(state, (), mesh)
  batch = {"image": np.ones((8, 8, 8, 3), np.float32)}
  batch["label"] = np.arange(8, dtype=np.int32) % 5
  batch = sharding.place_batch({"train": batch}, mesh)
  step = jax.jit(
    steps.make_train_step(method.loss, method.extra_args, optimizer),
    out_shardings=sharding.replicated(mesh),
  )
  trained = sum(
    p.nbytes * on
    for p, on in zip(
      jax.tree.leaves(params),
      jax.tree.leaves(optimizer.groups.trainable(params)),
      strict=True,
    )
  )
  return step.lower(state, batch), (state, batch), trained


@pytest.mark.parametrize(("per", "factor"), [(None, 1), (4, 2), (16, 0.5)])
def test_rates_are_scaled_to_the_batch(per, factor):
  config = tiny(lr_batch_size=per)
  assert config.batch_size == 8
  tx = main.build_optimizer(config, main.build_method(config, 6, 3)).tx
  params = {"head": {"bias": jnp.zeros(6)}}
  grads = jax.tree.map(jnp.ones_like, params)
  updates, _ = tx.update(grads, tx.init(params), params, epoch=0.0)
  np.testing.assert_allclose(
    updates["head"]["bias"], -factor * config.optimizer.head.lr, rtol=1e-3
  )


def test_arrays_of_the_method_reach_a_transform_in_a_group(monkeypatch):
  monkeypatch.setitem(optim.OPTIMIZERS, "memory", scale_by_memory)
  config = tiny()
  config.optimizer.head = {"name": "memory", "lr": 1.0}
  method = main.build_method(config, 6, 3)

  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Scaled(type(method)):
    def init_memory(self, params, trainable):
      memory = super().init_memory(params, trainable)
      return {**memory, "factor": jnp.float32(1.0)}

    def extra_args(self, memory):
      return {"factor": memory["factor"]}

  fields = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
  lowered, (state, batch), _ = lower(config, Scaled(**fields))
  step = lowered.compile()

  def moved(factor):
    factor = jax.device_put(jnp.float32(factor), state.step.sharding)
    memory = {**state.memory, "factor": factor}
    after, _ = step(state.replace(memory=memory), batch)
    return after.params["head"]["kernel"] - state.params["head"]["kernel"]

  assert abs(moved(1.0)).max() > 0
  np.testing.assert_allclose(moved(3.0), 3 * moved(1.0), rtol=1e-4, atol=1e-7)


def flops(**optimizer):
  cost = lower(tiny(**optimizer))[0].compile().cost_analysis()
  return (cost[0] if isinstance(cost, list) else cost)["flops"]


def test_frozen_weights_cost_no_gradient():
  body = {"name": "adam", "lr": 0.1}
  frozen, everything = flops(), flops(backbone=body)
  assert frozen < 0.85 * everything
  assert flops(clip_scope="all") > 1.1 * frozen  # it reads them


def test_devices_exchange_more_where_frozen_gradients_count():
  lowered, _, trained = lower(tiny(clip_scope="all"))
  total = collectives.exchanged_bytes(lowered.compile().as_text())
  assert total["all-reduce"] > 1.5 * trained
