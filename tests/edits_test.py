"""Edits of a run on disk: audited, undone in any order."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from edits_toy import BLOCK
from edits_toy import REQUESTS
from edits_toy import assert_close
from edits_toy import make

from libml import trees
from models import edits as edits_lib


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Returns a workdir and the models between its requests."""
  workdir = tmp_path_factory.mktemp("run")
  return workdir, make(workdir)


def same_bits(ours, theirs):
  return ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()


def test_all_requests_make_the_model_in_service(run):
  workdir, models = run
  edits = edits_lib.read_all(workdir)
  assert list(edits) == [0, 1, 2]
  assert tuple(edit.classes for edit in edits.values()) == REQUESTS
  assert_close(edits_lib.apply(models[0], edits.values()), models[-1])
  for i in range(3):
    ours = edits_lib.apply(models[i], [edits[i]])
    assert_close(ours, models[i + 1])
    with pytest.raises(AssertionError):  # each edit is far above rounding
      assert_close(ours, models[i], 1e-3)


def test_undoing_the_last_request_is_the_model_before_it(run):
  workdir, models = run
  assert_close(edits_lib.undo(workdir, [2]), models[2])
  assert_close(edits_lib.undo(workdir, [2, 1]), models[1])
  assert_close(edits_lib.undo(workdir, [0, 1, 2]), models[0])
  unchanged = edits_lib.undo(workdir, [])
  for name, leaf in trees.flatten(models[3]).items():
    assert same_bits(trees.flatten(unchanged)[name], leaf)


def test_undoing_an_earlier_request_leaves_the_sum_of_the_others(run):
  workdir, models = run
  edits = edits_lib.read_all(workdir)
  for number in edits:
    others = [edits[n] for n in edits if n != number]
    ours = edits_lib.undo(workdir, [number])
    assert_close(ours, edits_lib.apply(models[0], others))
  moved = trees.flatten(edits_lib.undo(workdir, [1]))
  kernel = f"{BLOCK.format(0)}/MlpBlock_0/Dense_0/kernel"
  changes = [
    trees.flatten(models[i + 1])[kernel] - trees.flatten(models[i])[kernel]
    for i in (0, 2)
  ]
  expected = trees.flatten(models[0])[kernel] + sum(changes)
  np.testing.assert_allclose(moved[kernel], expected, atol=1e-6)


def test_order_does_not_matter(run):
  workdir, models = run
  edits = list(edits_lib.read_all(workdir).values())
  orders = ([0, 1, 2], [2, 0, 1], [1, 2, 0])
  at_once = [edits_lib.apply(models[0], [edits[i] for i in o]) for o in orders]
  for other in at_once[1:]:
    assert_close(other, at_once[0], 2e-7)
  one_by_one = models[0]
  for i in (1, 2, 0):
    one_by_one = edits_lib.apply(one_by_one, [edits[i]])
  assert_close(one_by_one, at_once[0])
  back = edits_lib.apply(one_by_one, edits, times=-1)
  assert_close(back, models[0])


def test_zero_blocks_keep_their_kernels_bit_for_bit(run):
  workdir, models = run
  edit = edits_lib.read_all(workdir)[1]
  before = trees.map_named(lambda _, leaf: -0.0 * leaf, models[0])
  after = trees.flatten(edits_lib.apply(before, [edit], times=-1))
  for name, leaf in trees.flatten(before).items():
    edited = "MlpBlock" in name and name.endswith("kernel")
    edited = edited and f"{BLOCK.format(1)}/" not in name
    assert same_bits(after[name], leaf) != edited, name


def test_nothing_is_changed_in_place(run):
  workdir, models = run
  before = jax.tree.map(np.copy, models[0])
  edits_lib.apply(models[0], edits_lib.read_all(workdir).values())
  jax.tree.map(np.testing.assert_array_equal, models[0], before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_edits_narrow_weights_in_their_own_type(run, dtype):
  workdir, models = run
  edits = list(edits_lib.read_all(workdir).values())
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), models[0])
  wide = jax.tree.map(np.float64, half)
  ours = edits_lib.apply(half, edits)
  theirs = edits_lib.apply(wide, edits)
  for name, leaf in trees.flatten(ours).items():
    expected = trees.flatten(theirs)[name].astype(jnp.dtype(dtype))
    assert same_bits(leaf, expected), name


def test_audit_counts_what_an_edit_touches(run):
  workdir, models = run
  edits = edits_lib.read_all(workdir)
  for number, edit in edits.items():
    found = edits_lib.summary(edit)
    assert found["classes"] == list(REQUESTS[number])
    assert found["weights_changed"] == 4 * 2 * 16 * 32
    # A and B of both layers in the 4 blocks that are left.
    assert found["adapter_entries"] == 4 * 2 * 4 * (16 + 32)
    groups = found["groups"]
    assert [g["zero"] for g in groups.values()] == [
      i == number for i in range(5)
    ]
    adapters = trees.flatten(edit.adapters)
    squares = {}
    for i in range(5):
      name = BLOCK.format(i)
      of_block = [v for k, v in adapters.items() if k.startswith(f"{name}/")]
      entries = np.concatenate([np.ravel(v) for v in of_block])
      np.testing.assert_allclose(
        groups[name]["norm"], np.linalg.norm(entries), rtol=1e-6
      )
      kernels = [f"{name}/MlpBlock_0/Dense_{j}/kernel" for j in (0, 1)]
      moved = [
        trees.flatten(models[number + 1])[k] - trees.flatten(models[number])[k]
        for k in kernels
      ]
      squares[name] = sum(np.sum(np.float64(m) ** 2) for m in moved)
      np.testing.assert_allclose(
        groups[name]["change"], squares[name] ** 0.5, rtol=1e-4
      )
    np.testing.assert_allclose(
      found["norm"], sum(squares.values()) ** 0.5, rtol=1e-4
    )
    json.dumps(found)


PLACE = "Transformer/encoderblock_{}/MlpBlock_0/Dense_0"
GROUPINGS = {
  "lora": ({PLACE.format(1): False, PLACE.format(10): True}, [1, 10]),
  "matrix": (
    {f"{PLACE.format(1)}/lora_b": False, f"{PLACE.format(10)}/lora_b": True},
    [1, 10],
  ),
  "two captures": (
    {"encoderblock_1/Dense_0": False, "encoderblock_10/Dense_0": True},
    [1, 10],
  ),
  "a part of a name": ({"1": False}, [None]),
}


@pytest.mark.parametrize(("zero", "blocks"), GROUPINGS.values(), ids=GROUPINGS)
def test_groups_are_found_by_their_names(zero, blocks):
  a, b = np.ones((3, 2), np.float32), np.full((2, 5), 2, np.float32)
  adapters = paths_to_tree(
    {
      f"{PLACE.format(1)}/lora_a": a,
      f"{PLACE.format(1)}/lora_b": b,
      f"{PLACE.format(10)}/lora_a": a,
      f"{PLACE.format(10)}/lora_b": 0 * b,
    }
  )
  groups = edits_lib.summary(edits_lib.Edit(adapters, 0.5, zero, ()))["groups"]
  change = {1: 2 * 15**0.5, 10: 0.0, None: None}
  assert [g["zero"] for g in groups.values()] == list(zero.values())
  for found, block in zip(groups.values(), blocks, strict=True):
    assert found["change"] == pytest.approx(change[block])
    assert (found["norm"] is None) == (block is None)


def paths_to_tree(flat):
  tree = {}
  for name, leaf in flat.items():
    *folders, last = name.split("/")
    part = tree
    for folder in folders:
      part = part.setdefault(folder, {})
    part[last] = leaf
  return tree


def save(path, **leaves):
  """Writes an edit of one layer, some of its arrays replaced or left out."""
  flat = {
    f"{PLACE.format(0)}/lora_a": np.ones((16, 4), np.float32),
    f"{PLACE.format(0)}/lora_b": np.ones((4, 32), np.float32),
    f"zero/{BLOCK.format(0)}": np.bool_(False),
    "scale": np.float32(1),
    "classes": np.asarray([1], np.int32),
  }
  flat |= {k.replace("__", "/"): v for k, v in leaves.items()}
  path.parent.mkdir(exist_ok=True)
  np.savez(path, **{k: v for k, v in flat.items() if v is not None})
  return path


A, B = f"{PLACE.format(0)}/lora_a", f"{PLACE.format(0)}/lora_b"
BROKEN = {
  "no scale": ({"scale": None}, "missing: scale. Use"),
  "no classes": ({"classes": None}, "missing: classes"),
  "half a pair": ({B: None}, r"lora_a \(16, 4\), lora_b None"),
  "two ranks": ({B: np.ones((3, 32))}, r"lora_a \(16, 4\), lora_b \(3, 32\)"),
  "two scales": ({"scale": np.ones(2)}, r"scale: float64 of shape \(2,\)"),
  "class as text": ({"classes": np.array(["a"])}, r"classes: <U1 of shape"),
  "class below 0": ({"classes": np.array([-1])}, "classes: -1 is no class"),
  "one class, no list": ({"classes": np.int32(1)}, r"classes: int32 of shape"),
  "flag as text": (
    {f"zero/{BLOCK.format(0)}": np.array("no")},
    r"zero/.*: <U2 of shape",
  ),
  "nothing": ({A: None, B: None}, "it holds no adapters"),
  "wrong flag": (
    {f"zero/{BLOCK.format(0)}": np.bool_(True)},
    r"group 'Transformer/encoderblock_0' as zero, but the group changes",
  ),
}


@pytest.mark.parametrize(("leaves", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_edit_is_refused(tmp_path, leaves, message):
  assert edits_lib.read(save(tmp_path / "good.npz")).classes == (1,)
  path = save(tmp_path / "bad.npz", **leaves)
  with pytest.raises(ValueError, match=message):
    edits_lib.read(path)


def test_file_of_something_else_is_refused(tmp_path):
  path = tmp_path / "stage_0.npz"
  path.write_bytes(b"no zip")
  with pytest.raises(ValueError, match="not an .npz file of plain"):
    edits_lib.read(path)
  with pytest.raises(FileNotFoundError):
    edits_lib.read(tmp_path / "stage_1.npz")


def test_edits_of_another_model_are_refused(run):
  _, models = run
  edit = edits_lib.Edit(
    paths_to_tree(
      {
        f"{PLACE.format(7)}/lora_a": np.ones((16, 4)),
        f"{PLACE.format(7)}/lora_b": np.ones((4, 32)),
        f"{PLACE.format(1)}/lora_a": np.ones((8, 4)),
        f"{PLACE.format(1)}/lora_b": np.ones((4, 8)),
      }
    ),
    1.0,
    {},
    (),
  )
  with pytest.raises(ValueError) as error:
    edits_lib.apply(models[0], [edit])
  assert str(error.value).splitlines() == [
    "The edits do not fit the model:",
    f"  {PLACE.format(1)}/kernel: edit (8, 8), model (16, 32)",
    f"  {PLACE.format(7)}/kernel: edit (16, 32), model None",
    "Use weights and edits of the same run.",
  ]
