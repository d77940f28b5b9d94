"""Wrong labels: the released code's, and any class to retain."""

import json

import figures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from baselines_toy import tiny

import main
from libml.train import weights
from methods.parts import relabel

FIGURES = {"gslora/relabel": {}}
# Sizes of the classes to forget of which figures are stored.
SIZES = sorted(
  int(name.split("/P")[1])
  for name in figures.Reader(figures.folder())("gslora", "relabel")
  if name.startswith("out/count_of_100/P")
)
CLASSES = 12
# Not in order, and class 0 is among them: no position is taken for an id.
FORGET, MISSING = (0, 7, 11), (2, 5)
RETAIN = tuple(set(range(CLASSES)) - {*FORGET, *MISSING})
MASKS = tuple(
  jnp.isin(jnp.arange(CLASSES), jnp.array(c)) for c in (FORGET, RETAIN)
)
LABEL = jnp.asarray(np.repeat(FORGET, 400), jnp.int32)


@pytest.mark.parametrize("size", SIZES)
def test_shift_is_that_of_the_reference(golden, size):
  file = golden("gslora", "relabel")
  counts = file[f"out/count_of_100/P{size}"]
  draws = json.loads(str(file["meta"]))["draws"]
  label = jnp.arange(len(counts), dtype=jnp.int32)[:, None]
  shift = jnp.arange(1, draws + 1, dtype=jnp.int32)[None]
  moved = relabel.shift_label(label, shift, jnp.int32(size))
  found = [np.bincount(row, minlength=size) for row in np.array(moved)]
  np.testing.assert_array_equal(found, counts)


def test_shifts_are_drawn_from_1_to_100():
  label = jnp.full(20000, 30, jnp.int32)
  forget = jnp.arange(100) < 90
  drawn = relabel.shifted(jax.random.key(0), label, forget, ~forget)
  # One draw gives each; the shifts 1 to 10 and 91 to 100 meet, without 90's.
  count = np.bincount(drawn, minlength=100)
  assert count[30] == 0 and not count[90:].any()
  twice = np.isin(np.arange(90), np.arange(31, 41))
  # The label's own shift, 90, goes to the next label.
  assert abs(count[31] / 200 - 3) < 0.5
  assert abs(count[32:41].mean() / 200 - 2) < 0.2
  assert abs(count[:90][~twice].sum() / 200 - 79) < 1.5


@pytest.mark.parametrize("name", relabel.RELABELS)
def test_labels_are_drawn_anew_by_key_and_row(name):
  draw = jax.jit(relabel.RELABELS[name])
  first, second = (draw(jax.random.key(i), LABEL, *MASKS) for i in (0, 1))
  assert np.array_equal(draw(jax.random.key(0), LABEL, *MASKS), first)
  assert 0.3 < np.mean(first != second)
  assert len(set(np.array(first[:400]).tolist())) > 1
  assert first.dtype == LABEL.dtype


def test_kept_are_all_classes_to_retain_alike():
  drawn = relabel.uniform(jax.random.key(0), LABEL, *MASKS)
  for label in FORGET:
    count = np.bincount(drawn[LABEL == label], minlength=CLASSES)
    assert set(np.flatnonzero(count)) == set(RETAIN)
    share = count[list(RETAIN)] / 400
    assert abs(share - 1 / len(RETAIN)).max() < 4 * np.sqrt(1 / 7 / 400)


def test_shifted_are_the_first_ids_whatever_they_are():
  drawn = relabel.shifted(jax.random.key(0), LABEL, *MASKS)
  assert set(np.array(drawn).tolist()) == {0, 1, 2}  # one of them to forget
  assert not np.any(drawn == LABEL)


@pytest.fixture(scope="module")
def ewc():
  return main.build_method(tiny("ewc"), CLASSES, 1)


def memory():
  return {"forget": MASKS[0], "retain": MASKS[1]}


def test_only_images_to_forget_get_another_label(ewc):
  label = jnp.asarray([0, 1, 7, 3, 11, 2, 7, 7], jnp.int32)
  batch = {"image": jnp.zeros((8, 8, 8, 3)), "label": label}
  goes = np.isin(label, FORGET)
  seen = set()
  for step in range(20):
    rng = jax.random.fold_in(jax.random.key(0), step)
    found = ewc.wrong(memory(), batch, rng)
    assert found["image"] is batch["image"]
    assert np.array_equal(found["label"][~goes], label[~goes])
    assert np.isin(found["label"][goes], RETAIN).all()
    seen.add(tuple(np.array(found["label"]).tolist()))
  assert len(seen) == 20


def test_steps_draw_their_own_labels(ewc):
  params, _ = weights.first(tiny("ewc"), ewc.model)
  given = ewc.init_memory(params, jax.tree.map(lambda _: True, params))
  given = {**given, **memory()}
  image = jax.random.normal(jax.random.key(2), (8, 8, 8, 3))
  goes = jnp.full(8, FORGET[1], jnp.int32)
  loss = jax.jit(ewc.loss)

  def value(step, label):
    batch = {"train": {"image": image, "label": label}}
    rng = jax.random.fold_in(jax.random.key(3), step)
    return float(loss(params, given, batch, rng)[0])

  assert value(0, goes) == value(0, goes)
  assert len({value(step, goes) for step in range(4)}) == 4
  stays = jnp.full(8, RETAIN[0], jnp.int32)
  assert len({value(step, stays) for step in range(4)}) == 1


def test_unknown_name_is_refused():
  with pytest.raises(ValueError, match=r"relabel='any' must be .*'kept'"):
    main.build_method(tiny("ewc", method__relabel="any"), CLASSES, 1)
