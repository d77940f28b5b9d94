import jax
import jax.numpy as jnp
import numpy as np
import pytest

from libml import problems
from methods import coda_prompt
from models import coda
from models import vit

TASKS = 3


def build(**options):
  """Returns a method of 3 tasks with 2 components each."""
  model = vit.build("smoke", num_classes=6, image_size=8, depth=2)
  return coda_prompt.CodaPrompt(
    model=model,
    problem=problems.PROBLEMS["classification"](),
    num_classes=6,
    num_stages=TASKS,
    **{"e_layers": (0, 1), "pool_size": 7, "length": 4, **options},
  )


def begun(method, tasks):
  """Returns the components at the start of each task, without training."""
  begin = jax.jit(method.begin)
  found = [method.init_params(random_params(method), jax.random.key(0))]
  found = [found[0]["components"]]
  for task in range(tasks):
    key = jax.random.key(task)
    found.append(begin(found[-1], key, jnp.int32(task)))
  return found[1:]


def random_params(method):
  image = {"image": jnp.zeros((1, 8, 8, 3))}
  params = method.model.init(jax.random.key(1), image)["params"]
  return dict(params)


def test_components_are_orthonormal_task_by_task():
  method = build()
  for task, components in enumerate(begun(method, TASKS)):
    last = 2 * (task + 1)
    for leaf in components.values():
      rows = np.asarray(leaf).reshape(2, 7, -1)
      assert not rows[:, last:].any()
      gram = rows[:, :last] @ rows[:, :last].swapaxes(1, 2)
      np.testing.assert_allclose(gram, [np.eye(last)] * 2, atol=1e-5)
    used = jnp.arange(7) < last
    np.testing.assert_allclose(coda.penalty(components, used), 0, atol=1e-9)
  assert coda.penalty(components, used[::-1]) > 1e-2


def test_earlier_components_stay_bit_for_bit():
  first, second, third = begun(build(), TASKS)
  for name, leaf in third.items():
    np.testing.assert_array_equal(leaf[:, :2], first[name][:, :2])
    np.testing.assert_array_equal(leaf[:, :4], second[name][:, :4])
    assert (leaf[:, 4:6] != second[name][:, 4:6]).any()


@pytest.mark.parametrize("ortho_loss", [0.0, 0.1])
def test_gradients_reach_the_components_of_the_task_only(ortho_loss):
  method = build(ortho_loss=ortho_loss)
  params = random_params(method)
  params = method.init_params(params, jax.random.key(0))
  params["components"] = begun(method, 2)[-1]
  memory = method.init_memory(params, jax.tree.map(lambda _: False, params))
  memory["task"] = jnp.int32(1)
  image = jax.random.normal(jax.random.key(2), (4, 8, 8, 3))
  batch = {"image": image, "label": jnp.array([2, 3, 3, 2])}
  grads, _ = jax.jit(jax.grad(method.loss, has_aux=True))(
    params, memory, {"train": batch}, jax.random.key(1)
  )
  for leaf in grads["components"].values():
    moved = np.abs(leaf).reshape(2, 7, -1).max(axis=(0, 2)) > 0
    np.testing.assert_array_equal(moved, [0, 0, 1, 1, 0, 0, 0])


def test_a_trained_backbone_is_refused():
  method = build()
  params = method.init_params(random_params(method), jax.random.key(0))
  everything = jax.tree.map(lambda _: True, params)
  with pytest.raises(ValueError, match="set optimizer.backbone=None"):
    method.init_memory(params, everything)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"pool_size": 17}, "pool_size=17 must be 3 .* to 16 .*width"),
    ({"pool_size": 2}, "pool_size=2 must be 3 .*each task. to 16"),
    ({"length": 5}, "length=5 must be even"),
    (
      {"e_layers": (0, 2)},
      r"e_layers=\(0, 2\) must be one or more distinct layers, .* 0 to 1",
    ),
    ({"e_layers": (1, 1)}, "distinct"),
    ({"e_layers": ()}, "one or more"),
    ({"ortho_loss": -1.0}, "ortho_loss=-1.0 must be 0 or more"),
  ],
)
def test_options_that_do_not_fit_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    build(**options)
