"""LoRA-Sub-DRS against its reference (tests/golden/lora_sub/README.md)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from safetensors import numpy as safetensors

from libml import losses
from libml import metrics
from libml import optim
from libml import paths
from libml import problems
from libml import prototypes
from libml import scenarios
from libml import schedules
from libml import steps
from libml import subspace
from methods import lora_sub
from models import lora
from models import pretrained
from models import vit

SIZES = dict(
  num_classes=9,
  patch_size=8,
  image_size=32,
  width=32,
  depth=3,
  mlp_dim=128,
  num_heads=4,
  gelu="erf",
)
ADAPTERS = {"layers": r".*/(key|value)", "rank": 3}
ATTENTION = "Transformer/encoderblock_{}/MultiHeadDotProductAttention_0"
# Reference's name in a block -> ours in its attention, transposed.
ADAPTED = {
  "lora_A_k.weight": "key/lora_a",
  "lora_B_k.weight": "key/lora_b",
  "lora_A_v.weight": "value/lora_a",
  "lora_B_v.weight": "value/lora_b",
}
PREVIOUS = {"prev_k_weight": "key", "prev_v_weight": "value"}


def model(**changes):
  return vit.build(**{**SIZES, "block_epsilon": 1e-5, **changes}, lora=ADAPTERS)


def image(array):
  return jnp.asarray(array.transpose(0, 2, 3, 1) / 255, jnp.float32)


def adapters(file, prefix):
  """Returns the stored adapters under our names."""
  return {
    f"{ATTENTION.format(i)}/{ours}": file[name].T
    for i in range(SIZES["depth"])
    for theirs, ours in ADAPTED.items()
    if (name := f"{prefix}transformer.blocks.{i}.attn.{theirs}") in file
  }


def old_sums(file, prefix):
  """Returns the stored old sums S as kernels under our names."""
  found = {}
  for i in range(SIZES["depth"]):
    for theirs, layer in PREVIOUS.items():
      name = f"{prefix}transformer.blocks.{i}.attn.{theirs}"
      if name in file:
        kernel = f"{ATTENTION.format(i)}/{layer}/kernel"
        found[kernel] = file[name].T.reshape(32, 4, 8)
  return traverse_util.unflatten_dict(found, sep="/")


def read_params(file, tmp_path, module):
  """Returns the stored parameters W, with stored or zero adapters."""
  weights = {
    name.removeprefix("params/")
    .replace("transformer.blocks", "blocks")
    .replace("ln_1", "norm1")
    .replace("ln_2", "norm2"): np.ascontiguousarray(value)
    for name, value in file.items()
    if name.startswith("params/")
    and not any(part in name for part in ("lora_", "prev_", "classifier"))
  }
  safetensors.save_file(weights, tmp_path / "toy.safetensors")
  shapes = jax.eval_shape(
    module.init, jax.random.key(0), {"image": jnp.zeros((1, 32, 32, 3))}
  )["params"]
  base, added = lora.split(shapes)
  params = pretrained.load(tmp_path / "toy.safetensors", base)
  added = lora.restart(added, jax.random.key(0))
  return paths.update(lora.join(params, added), adapters(file, "params/"))


def silent(params):
  """Returns the parameters without what the adapters do."""
  return paths.map_named(
    lambda name, x: x * 0 if name.endswith("lora_b") else x, params
  )


def close(ours, theirs, tolerance, name=""):
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
  ("epsilon", "folder"), [(1e-5, "out/"), (1e-6, "out/block_ln_eps_1e-6/")]
)
def test_features_in_all_weight_modes(golden, tmp_path, epsilon, folder):
  file = golden("lora_sub", "lora_sub_forward")
  module = model(block_epsilon=epsilon)
  pretrained_params = read_params(file, tmp_path, module)
  old = old_sums(file, "params/")
  train = lora.subtract(pretrained_params, old, times=-1)
  merged = lora.merge(train, 1.0)
  total = jax.tree.map(jnp.add, old, lora.deltas(train, 1.0))
  modes = {
    "train": train,
    "test": silent(train),
    "subtract": lora.subtract(silent(train), old, times=2),
    "merged": merged,
    "merged_subtract": lora.subtract(merged, total, times=2),
  }
  for mode, params in modes.items():
    outputs = module.apply(
      {"params": params}, {"image": image(file["in/image"])}
    )
    close(outputs["features"], file[f"{folder}{mode}/features"], 2e-5, mode)
  for name, value in paths.flatten(old_sums(file, "after1/")).items():
    close(paths.flatten(total)[name], value, 1e-6, name)


def test_tokens_weights_and_gradients(golden, tmp_path):
  file = golden("lora_sub", "lora_sub_forward")
  module = model()
  old = old_sums(file, "params/")
  params = lora.subtract(read_params(file, tmp_path, module), old, times=-1)
  x = image(file["in/image"])
  tokens = module.apply({"params": params}, x, method="encode")
  close(tokens, file["out/train/tokens"], 2e-5)
  key = f"{ATTENTION.format(0)}/key/kernel"
  for mode, tree in (
    ("train", lora.merge(params, 1.0)),
    ("test", params),
    ("subtract", lora.subtract(params, old, times=2)),
  ):
    kernel = paths.flatten(tree)[key].reshape(32, 32)
    close(kernel, file[f"out/{mode}/block0_k_weight"].T, 1e-6, mode)

  def total(params):
    features = module.apply({"params": params}, {"image": x})["features"]
    return jnp.sum(features * file["in/cotangent"])

  grads = paths.flatten(jax.grad(total)(params))
  expected = adapters(file, "grad/")
  assert len(expected) == 12
  for name, value in expected.items():
    close(grads[name], value, 1e-4 * abs(value).max(), name)


def method(**changes):
  return lora_sub.LoraSub(
    **{
      "model": model(),
      "problem": problems.PROBLEMS["classification"](),
      "num_classes": 9,
      "num_stages": 3,
      "unit_norm": True,
      **changes,
    }
  )


def test_covariance_and_projector(golden, tmp_path):
  file = golden("lora_sub", "covariance")
  ours = method()
  old = old_sums(file, "params/")
  params = lora.subtract(read_params(file, tmp_path, ours.model), old, times=-1)
  memory = {"sums": old}
  sums = None
  for number in range(3):
    x = image(file[f"in/image{number}"])
    x = jnp.pad(x, ((0, 8 - len(x)), (0, 0), (0, 0), (0, 0)), mode="edge")
    mask = jnp.arange(8) < len(file[f"in/image{number}"])
    # The pass comes before new adapters are drawn: the merge left B at 0.
    batch = {"image": x, "mask": mask}
    added = ours.moments(silent(params), memory, batch)
    sums = jax.tree.map(jnp.add, sums, added) if sums else added
    mean = sums["moments"]["encoderblock_0"] / sums["tokens"]
    theirs = file[f"out/blocks.0/matrix_after_batch{number}"]
    close(mean, theirs, 1e-5 * theirs.max())
  found = ours.project(sums["moments"])
  for i in range(3):
    block, theirs = f"encoderblock_{i}", f"out/blocks.{i}"
    assert sums["tokens"] == file[f"{theirs}/count"]
    mean = sums["moments"][block] / sums["tokens"]
    close(mean, file[f"{theirs}/matrix"], 1e-5 * file[f"{theirs}/matrix"].max())
    values, _ = subspace.eigen(mean)
    expected = file[f"{theirs}/eigenvalues"]
    close(values, expected, 1e-5 * expected.max())
    assert found["kept"][block] == file[f"{theirs}/kept"]
    close(found["projectors"][block], file[f"{theirs}/projection"], 1e-4)


@pytest.mark.parametrize("name", ["gapped", "one", "flat"])
def test_spectra_made_by_hand(golden, name):
  file = golden("lora_sub", "covariance")
  found = method().project({"block": jnp.asarray(file[f"in/{name}/matrix"])})
  assert found["kept"]["block"] == file[f"out/{name}/kept"]
  ours = found["projectors"]["block"]
  if name == "flat":
    norm = file["out/flat/projection_norm"]
    close(np.linalg.norm(ours), norm, 1e-5)
  else:
    close(ours, file[f"out/{name}/projection"], 1e-4)


def optimizer(l2=0.0, lr=0.01, head_lr=0.02, epochs=1):
  adam = dict(
    name="adam", epsilon_hat=True, l2=l2, schedule="late_quarter_cosine"
  )
  return optim.build(
    groups=(
      ("lora", r".*/lora_[ab]|lora_[ab]"),
      ("head", r"head/.*"),
      ("backbone", r".*"),
    ),
    epochs=epochs,
    lora={**adam, "lr": lr, "project": "update"},
    head={**adam, "lr": head_lr},
    backbone=None,
  )


@pytest.mark.parametrize("kind", ["plain", "projected"])
@pytest.mark.parametrize("decay", [0, 0.01])
def test_four_projected_adam_steps(golden, kind, decay):
  file = golden("lora_sub", "projected_adam")
  ours = {
    "lora_A_k.weight": "lora_a",
    "lora_B_k.weight": "lora_b",
    "head.weight": "head/kernel",
    "head.bias": "head/bias",
  }

  def tree(prefix):
    return traverse_util.unflatten_dict(
      {name: file[prefix + theirs].T for theirs, name in ours.items()}, sep="/"
    )

  values, vectors = subspace.eigen(jnp.asarray(file["in/matrix"]))
  keep = subspace.leading(values, 0.99)
  assert keep.sum() == file["out/kept"]
  close(values, file["out/eigenvalues"], 1e-5 * values[0])
  projector = subspace.projector(vectors, keep, unit_norm=True)
  close(projector, file["out/projection"], 1e-5)
  extra = {
    "plain": {},
    "projected": {
      "left": {"lora_a": projector},
      "right": {"lora_b": projector},
    },
  }
  tx = optimizer(decay).tx
  params = tree("params/")
  state = tx.init(params)
  folder = f"out/wd{decay}/{kind}/"
  for number in range(1, 5):
    updates, after = tx.update(
      tree(f"in/grad/step{number}/"), state, params, epoch=1, **extra[kind]
    )
    plain, _ = tx.update(tree(f"in/grad/step{number}/"), state, params, epoch=1)
    state = after
    params = optax.apply_updates(params, updates)
    step = f"{folder}step{number}/"
    for theirs, name in ours.items():
      expected = file[f"{step}update/{theirs}"].T
      tolerance = 1e-5 * abs(expected).max() + 1e-12
      close(paths.flatten(plain)[name], expected, tolerance, name)
      projected = file.get(f"{step}projected_update/{theirs}")
      if projected is not None:
        close(paths.flatten(updates)[name], projected.T, tolerance, name)
      close(
        paths.flatten(params)[name],
        file[f"{step}params/{theirs}"].T,
        1e-6,
        name,
      )
  moments = paths.flatten(state)
  for theirs, name in ours.items():
    for moment, mine in (("exp_avg", "mu"), ("exp_avg_sq", "nu")):
      expected = file[f"{folder}moments/{theirs}/{moment}"].T
      (found,) = [
        value
        for key, value in moments.items()
        if key.endswith(f"{mine}/{name}")
      ]
      close(found, expected, 1e-6 * abs(expected).max())


@pytest.mark.parametrize(
  ("length", "epochs"), [(1, 1), (2, 2), (5, 5), (20, 20), (50, 40), (50, 50)]
)
def test_learning_rate_of_each_epoch(golden, length, epochs):
  file = golden("lora_sub", "lr_schedule")
  rate = schedules.build("late_quarter_cosine", lr=1.0, epochs=length)
  expected = file[f"out/K{length}_epochs{epochs}"]
  for per_epoch in (1, 3, 40):
    for step in {0, per_epoch - 1}:
      done = [(e * per_epoch + step + 1) / per_epoch for e in range(epochs)]
      close([float(rate(np.float32(e))) for e in done], expected, 1e-6)


ATL = (
  "proto0 proto1 proto5 proto5_margin2 margin_small one_class one_class_proto5 "
  "lone_sample batch_of_one ties ties_proto1 duplicates"
).split()


@pytest.mark.parametrize("case", ATL)
def test_triplet_loss_and_gradient(golden, case):
  file = golden("lora_sub", "atl")
  features = jnp.asarray(file[f"in/{case}/features"])
  label = jnp.asarray(file[f"in/{case}/labels"], jnp.int32)
  stored = file[f"in/{case}/prototypes"]
  padded = jnp.zeros((9, 16)).at[2 : 2 + len(stored)].set(stored)
  known = jnp.isin(jnp.arange(9), jnp.arange(2, 2 + len(stored)))

  def loss(features):
    return losses.augmented_triplet(
      features, label, padded, known, margin=float(file[f"in/{case}/margin"])
    )

  value, grad = jax.value_and_grad(loss)(features)
  loose = case in ("duplicates", "lone_sample")
  tolerance = 1e-3 if loose else 1e-5
  if case in ("one_class", "batch_of_one"):
    tolerance = 1e-6
  close(value, file[f"out/{case}/loss"], tolerance)
  close(
    grad,
    file[f"grad/{case}/features"],
    1e-4 if case == "duplicates" else 1e-6,
  )


def test_prototypes_and_predictions(golden, tmp_path):
  file = golden("lora_sub", "ncm")
  ours = method(num_classes=3)
  old = old_sums(file, "params/")
  params = lora.subtract(read_params(file, tmp_path, ours.model), old, times=-1)
  params = lora.merge(params, 1.0)
  sums = None
  for number in range(3):
    batch = {
      "image": image(file[f"in/train{number}/image"]),
      "label": jnp.asarray(file[f"in/train{number}/label"], jnp.int32),
    }
    batch["mask"] = jnp.ones(len(batch["label"]), bool)
    added = ours.class_sums(params, {}, batch)
    sums = jax.tree.map(jnp.add, sums, added) if sums else added
  means = prototypes.means(**sums)
  for c in range(3):
    close(means[c], file[f"out/prototype{c}"], 2e-5)
  memory = {"prototypes": means, "known": jnp.ones(3, bool)}
  outputs = ours.predict(
    params, memory, {"image": image(file["in/test/image"])}
  )
  close(outputs[""]["features"], file["out/test_features"], 2e-5)
  np.testing.assert_array_equal(
    jnp.argmax(outputs[""]["logits"], axis=-1), file["out/predictions"]
  )
  logits = prototypes.cosine_logits(
    jnp.asarray(file["in/random/features"]),
    jnp.asarray(file["in/random/prototypes"]),
    jnp.ones(9, bool),
  )
  np.testing.assert_array_equal(
    jnp.argmax(logits, axis=-1), file["out/random/predictions"]
  )


class Batches:
  """Stands in for StageData: the stored batches, in order, for all passes."""

  def __init__(self, batches):
    self.batches = batches
    self.compiled = steps.Compiled()

  def accumulate(self, name, fn, state, *roles, augment=False):
    del roles, augment
    total = None
    for batch in self.batches:
      added = self.compiled(name, fn)(state.params, state.memory, batch)
      total = jax.tree.map(jnp.add, total, added) if total else added
    return total

  def steps_per_epoch(self, roles):
    del roles
    return len(self.batches)


def read_batches(file, task):
  batches, number = [], 0
  while f"in/task{task}/batch{number}/image" in file:
    folder = f"in/task{task}/batch{number}/"
    label = jnp.asarray(file[f"{folder}label"], jnp.int32)
    batches.append(
      {
        "image": image(file[f"{folder}image"]),
        "label": label,
        "mask": jnp.ones(len(label), bool),
      }
    )
    number += 1
  return batches


def stored_head(file, prefix, task, params):
  """Returns the head with a task's columns taken from the file."""
  columns = np.arange(3 * task, 3 * task + 3)
  head = dict(params["head"])
  for theirs, ours in (("weight", "kernel"), ("bias", "bias")):
    value = file[f"{prefix}classifier_pool.{task}.{theirs}"].T
    head[ours] = jnp.asarray(head[ours]).at[..., columns].set(value)
  return head


def check_task(state, file, task):
  """Compares what a task leaves with the stored figures."""
  ours = paths.flatten(state.memory["sums"])
  for name, value in paths.flatten(
    old_sums(file, f"task{task}/after/")
  ).items():
    close(ours[name], value, 2e-5, name)
  seen = 3 * task + 3
  close(
    state.memory["prototypes"][:seen],
    file[f"task{task}/after/prototypes"],
    5e-5,
  )
  assert state.memory["known"].tolist() == [c < seen for c in range(9)]


def check_tests(whole, state, file, task):
  """Compares features and predictions on the test images of seen tasks."""
  for old in range(task + 1):
    batch = {"image": image(file[f"in/task{old}/test/image"])}
    outputs = whole.predict(state.params, state.memory, batch)[""]
    folder = f"task{task}/after/test{old}/"
    close(outputs["features"], file[f"{folder}features"], 5e-5)
    answers = jnp.argmax(outputs["logits"], axis=-1)
    np.testing.assert_array_equal(answers, file[f"{folder}predictions"])


def check_steps(step, state, file, task, batches):
  """Takes a task's steps, each compared; returns the state after them."""
  for number, batch in enumerate(batches):
    state, got = step(state, {"train": batch})
    folder = f"task{task}/step{number}/"
    for name in ("loss", "cross_entropy", "triplet"):
      theirs = file[folder + name]
      close(got[name], theirs, 1e-5 * abs(theirs), folder + name)
    for group in ("lora", "head"):
      assert got[f"learning_rate/{group}"] == file[f"{folder}lr_{group}"]
    params = paths.flatten(state.params)
    expected = adapters(file, f"{folder}params/")
    assert len(expected) == 12
    for name, value in expected.items():
      close(params[name], value, 5e-5, folder + name)
    head = stored_head(file, f"{folder}params/", task, state.params)
    for name, value in head.items():
      close(params[f"head/{name}"], value, 2e-5, folder + name)
  return state


def test_three_tasks_of_the_whole_method(golden, tmp_path):
  file = golden("lora_sub", "end_to_end")
  whole = method(triplet=0.2, margin=1.0)
  params = read_params(file, tmp_path, whole.model)
  for task in range(3):
    params = {**params, "head": stored_head(file, "params/", task, params)}
  step_optimizer = optimizer()
  state = steps.first_state(
    whole, step_optimizer, params, rng=jax.random.key(0)
  )
  step = jax.jit(
    steps.make_train_step(whole.loss, whole.extra_args, step_optimizer)
  )
  for task in range(3):
    data = Batches(read_batches(file, task))
    classes = tuple(range(3 * task, 3 * task + 3))
    stage = scenarios.Stage(task, "learn", {}, {}, {"learn": classes})
    state = whole.before_stage(state, stage, data)
    if task:
      for i in range(3):
        theirs, block = f"task{task}/blocks.{i}/", f"encoderblock_{i}"
        assert state.memory["kept"][block] == file[f"{theirs}kept"]
        close(
          state.memory["projectors"][block], file[f"{theirs}projection"], 1e-4
        )
    drawn = adapters(file, f"in/task{task}/init/")
    assert len(drawn) == 6
    state = state.replace(params=paths.update(state.params, drawn))
    state = steps.begin_stage(
      state,
      task + 2,
      len(data.batches),
      jax.random.key(0),
      tx=step_optimizer.tx,
      restart=True,
    )
    state = check_steps(step, state, file, task, data.batches)
    state = whole.after_stage(state, stage, data)
    check_task(state, file, task)
    check_tests(whole, state, file, task)


def test_metrics_of_libcontinual(golden):
  file = golden("lora_sub", "lib_metrics")
  table = file["in/accuracy_table"].T  # theirs: [after task, on task]
  for task in range(6):
    for name, ours in (
      ("forgetting", metrics.libcontinual_forgetting),
      ("backward_transfer", metrics.libcontinual_backward),
      ("task_average", metrics.avg_acc),
    ):
      close(ours(table, task), file[f"out/{name}"][task], 1e-6, name)
