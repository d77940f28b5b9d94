import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import prompts
from models import selection


def similarity(rows, pool_size):
  """Similarities under which row i wants rows[i], in that order."""
  sim = np.full((len(rows), pool_size), -1.0, np.float32)
  for row, ids in zip(sim, rows, strict=True):
    row[ids] = np.linspace(1, 0.5, len(ids))
  return jnp.asarray(sim)


def test_instance_choice_falls_with_similarity():
  sim = similarity([[3, 1], [0, 2]], 4)
  np.testing.assert_array_equal(selection.select(sim, 2), [[3, 1], [0, 2]])


def test_equal_similarities_give_the_lower_id():
  np.testing.assert_array_equal(selection.select(jnp.ones((1, 4)), 2), [[0, 1]])


def test_vote_lists_ids_by_falling_count():
  # Four rows: 3 three times, 1 twice, the others at most once; then all ties.
  rows = [[3, 1], [3, 0], [1, 3], [2, 4], [4, 3], [2, 1], [4, 0], [3, 0]]
  idx = selection.select(similarity(rows, 5), 2, vote_group=4)
  np.testing.assert_array_equal(idx, [[3, 1]] * 4 + [[0, 3]] * 4)


def test_masked_rows_have_no_vote():
  rows = [[3, 1], [3, 1], [0, 2]]
  mask = jnp.array([False, False, True])
  idx = selection.select(similarity(rows, 4), 2, vote_group=3, mask=mask)
  np.testing.assert_array_equal(idx, [[0, 2]] * 3)


def test_masked_rows_do_not_count_in_the_mean():
  sim = jnp.array([[0.5, 0.25], [9.0, 9.0]])
  idx = jnp.array([[0, 1], [0, 1]])
  mean = selection.mean_similarity(sim, idx, jnp.array([True, False]))
  assert mean == 0.75
  assert selection.mean_similarity(sim, idx, jnp.array([False, False])) == 0


@pytest.mark.parametrize("group", [0, 4, 12])
def test_vote_group_must_divide_the_batch(group):
  with pytest.raises(ValueError, match=r"batch of 6.*\[1, 2, 3, 6\]"):
    selection.select(jnp.ones((6, 4)), 2, vote_group=group)


def test_task_block_is_traced_and_falls_back():
  sim = similarity([[4, 0], [3, 1]], 5)
  traces = []

  @jax.jit
  def choose(task):
    traces.append(task)
    return selection.select(sim, 2, task=task)

  for task, idx in (
    (0, [[0, 1]] * 2),
    (1, [[2, 3]] * 2),
    (2, [[4, 0], [3, 1]]),
  ):
    np.testing.assert_array_equal(choose(jnp.int32(task)), idx)
  assert len(traces) == 1


def test_key_gradient_reaches_chosen_keys_only():
  pool = prompts.Prompts(
    width=4, num_heads=2, depth=1, pool_size=3, length=2, top_k=1
  )
  query = jnp.array([[1.0, 0.5, 0, 0]])
  params = pool.init(jax.random.key(0), query)["params"]
  key = jnp.array([[0.1, 0.2, 0.3, 0], [1.0, 0.1, 0, 0.1], [-1, 0, 0, 0]])
  params = {"prompt_pool": {**params["prompt_pool"], "key": key}}

  def loss(params):
    inputs, chosen = pool.apply({"params": params}, query)
    return chosen["reduce_sim"] + inputs["prompts"][0]["tokens"].sum()

  grads = jax.grad(loss)(params)["prompt_pool"]
  np.testing.assert_array_equal(grads["key"].any(axis=1), [False, True, False])
  np.testing.assert_array_equal(grads["prompt"][0, :, 0, 0], [0, 1, 0])


def test_prefix_keeps_each_examples_own_prompts():
  # Entry = which prompt it belongs to: catches any mix-up of the axes.
  pool = prompts.Prompts(
    width=4,
    num_heads=2,
    depth=2,
    e_layers=[1],
    e_prefix=True,
    pool_size=3,
    length=2,
    top_k=2,
  )
  query = jnp.eye(3, 4)
  mark = jnp.arange(2)[:, None] * 10 + jnp.arange(3)[None]  # 10 kind + id
  prompt = jnp.broadcast_to(
    mark[None, :, :, None, None, None], (1, 2, 3, 2, 2, 2)
  )
  key = jnp.array([[1.0, 0.5, 0, 0], [0, 1, 0.5, 0], [0.5, 0, 1, 0]])
  params = {"prompt_pool": {"prompt": prompt, "key": key}}
  inputs, chosen = pool.apply({"params": params}, query)
  np.testing.assert_array_equal(chosen["prompt_idx"], [[0, 2], [1, 0], [2, 1]])
  prefix = inputs["prompts"][1]["prefix"]
  ids = np.repeat(chosen["prompt_idx"], 2, axis=1)
  np.testing.assert_array_equal(prefix[..., 0, 0], [ids, 10 + ids])


def test_shared_prompt_without_a_pool():
  shared = prompts.Prompts(
    width=4, num_heads=2, depth=3, e_layers=[], g_layers=[0, 2], g_length=1
  )
  query = jnp.zeros((2, 4))
  variables = shared.init(jax.random.key(0), query)
  inputs, chosen = shared.apply(variables, query)
  assert chosen == {} and variables["params"].keys() == {"prefix"}
  assert inputs["prompts"].keys() == {0, 2}
  row = variables["params"]["prefix"][2]
  for example in range(2):
    prefix = inputs["prompts"][2]["prefix"][:, example]
    np.testing.assert_array_equal(prefix, row)


@pytest.mark.parametrize(
  "shape, axis", [((2, 5, 3, 4), 1), ((2, 2, 5, 3, 2, 2), 2)]
)
def test_transfer_block(shape, axis):
  prompt = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
  key = jnp.arange(20.0).reshape(5, 4)
  params = {"prompt_pool": {"prompt": prompt, "key": key}, "head": jnp.ones(3)}

  @jax.jit
  def start(task):
    return prompts.transfer_block(params, task, 2, prompts=True, keys=True)

  for task, rows in ((0, [0, 1, 2, 3, 4]), (1, [0, 1, 0, 1, 4]), (2, range(5))):
    moved = start(jnp.int32(task))
    pool = moved["prompt_pool"]
    rows = np.array(list(rows))
    np.testing.assert_array_equal(pool["prompt"], jnp.take(prompt, rows, axis))
    np.testing.assert_array_equal(pool["key"], key[rows])
    np.testing.assert_array_equal(moved["head"], params["head"])


def test_transfer_block_moves_only_what_is_asked():
  prompt = jnp.arange(16.0).reshape(1, 4, 2, 2)
  key = jnp.arange(8.0).reshape(4, 2)
  params = {"prompt_pool": {"prompt": prompt, "key": key}}
  moved = prompts.transfer_block(params, 1, 2, prompts=True, keys=False)
  np.testing.assert_array_equal(moved["prompt_pool"]["key"], key)
  np.testing.assert_array_equal(
    moved["prompt_pool"]["prompt"][:, 2:], prompt[:, :2]
  )
  moved = prompts.transfer_block(params, 1, 2, prompts=False, keys=True)
  np.testing.assert_array_equal(moved["prompt_pool"]["prompt"], prompt)
  np.testing.assert_array_equal(moved["prompt_pool"]["key"][2:], key[:2])
