"""Face verification: whether two images show one person (the LFW protocol).

Huang et al., "Labeled Faces in the Wild", 2007. Each pair of images gets a
similarity, the cosine of the two embeddings. Accuracy is that of a threshold:
for each of ten folds of pairs the one that is best on the other nine.

Pairs are listed in a text file, in either of two forms:

  path_a path_b 1           1: one person, 0: two; paths from the images' folder
  path_c path_d 0

and LFW's own pairs.txt, a first line with the number of folds and of pairs,
then name n m, or name n other m, for NAME/NAME_000n.jpg. Fields are parted by
tabs where a line has some, else by spaces. Empty lines and lines that start
with "#" are passed over.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import metrics

# False accept rates at which the true accept rate is reported.
FALSE_ACCEPT_RATES = (1e-1, 1e-2, 1e-3)


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Pairs of images, the images numbered.

  Attributes:
    images: Paths of all images, each once.
    first: int32 [P], number of each pair's first image.
    second: int32 [P], number of its second.
    same: bool [P], whether they show one person.
    folds: F, into how many folds the pairs are cut, in their order.
  """

  images: tuple[pathlib.Path, ...]
  first: np.ndarray
  second: np.ndarray
  same: np.ndarray
  folds: int = 10


def read_pairs(
  path: str | pathlib.Path, root: str | pathlib.Path, *, folds: int = 10
) -> Pairs:
  """Reads a list of pairs; see the module for the two forms.

  Args:
    path: The text file.
    root: Folder of the images.
    folds: F; LFW's own list has its number of folds in the first line.

  Raises:
    FileNotFoundError: No such file, or images that do not exist.
    ValueError: A line of neither form, fewer pairs than folds, or pairs that
      are all of one kind.
  """
  path, root = pathlib.Path(path), pathlib.Path(root)
  if not path.is_file():
    raise FileNotFoundError(f"No list of pairs {path}.")
  lines = [
    (number, line.split("\t") if "\t" in line else line.split())
    for number, line in enumerate(path.read_text().splitlines(), start=1)
    if line.strip() and not line.startswith("#")
  ]
  is_lfw = bool(lines) and len(lines[0][1]) <= 2
  if is_lfw:
    folds = _number(path, *lines.pop(0))
  parse = _lfw_pair if is_lfw else _pair
  found = [parse(path, number, fields) for number, fields in lines]
  if folds < 2 or len(found) < folds:
    raise ValueError(
      f"{path} lists {len(found)} pairs for {folds} folds: list at least one a"
      " fold, and take at least 2 folds."
    )
  numbers: dict[str, int] = {}
  for a, b, _ in found:
    for name in (a, b):
      numbers.setdefault(name, len(numbers))
  missing = [name for name in numbers if not (root / name).is_file()]
  if missing:
    raise FileNotFoundError(
      f"{len(missing)} images of {path} are not in {root}, the first"
      f" {missing[0]}: give the folder that the paths start from."
    )
  same = np.array([is_same for _, _, is_same in found])
  if same.all() or not same.any():
    kind = "one person" if same.all() else "two persons"
    raise ValueError(
      f"The pairs of {path} all show {kind}: list pairs of both kinds."
    )
  return Pairs(
    images=tuple(root / name for name in numbers),
    first=np.array([numbers[a] for a, _, _ in found], np.int32),
    second=np.array([numbers[b] for _, b, _ in found], np.int32),
    same=same,
    folds=folds,
  )


def _pair(path, number, fields):
  if len(fields) != 3 or fields[2] not in ("0", "1"):
    raise ValueError(
      f"{path}, line {number}: {' '.join(fields)!r} must be 'path_a path_b 1'"
      " (one person) or '... 0' (two); part paths with spaces by tabs."
    )
  return fields[0], fields[1], fields[2] == "1"


def _lfw_pair(path, number, fields):
  match fields:
    case name, n, m if n.isdecimal() and m.isdecimal():
      return _lfw_image(name, n), _lfw_image(name, m), True
    case name, n, other, m if n.isdecimal() and m.isdecimal():
      return _lfw_image(name, n), _lfw_image(other, m), False
  raise ValueError(
    f"{path}, line {number}: {' '.join(fields)!r} must be 'name n m' or 'name"
    " n other m', as in LFW's pairs.txt, which the first line announces."
  )


def _lfw_image(name: str, number: str) -> str:
  return f"{name}/{name}_{int(number):04d}.jpg"


def _number(path, number, fields) -> int:
  if len(fields) == 1 or not fields[0].isdecimal():
    raise ValueError(
      f"{path}, line {number}: {' '.join(fields)!r} must be the numbers of"
      " folds and of pairs a fold, as in LFW's pairs.txt, or 'path_a path_b 1'."
    )
  return int(fields[0])


def similarities(
  embeddings: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
  """Returns the cosine [P] of the embeddings [N, D] of each pair.

  An embedding of zeros is at a right angle to all.
  """
  e = np.asarray(embeddings, np.float64)
  e = e / np.maximum(np.linalg.norm(e, axis=1, keepdims=True), 1e-12)
  return np.sum(e[first] * e[second], axis=1)


def best_threshold(similarity: np.ndarray, same: np.ndarray) -> float:
  """Returns the threshold above which "one person" is most often right.

  Halfway between two similarities, or beyond all; the lowest of equally good.

  Args:
    similarity: [P].
    same: bool [P].
  """
  order = np.argsort(similarity, kind="stable")
  values, kinds = similarity[order], same[order]
  # Right answers where the first k pairs are taken for two persons.
  right = np.concatenate([[0], np.cumsum(~kinds)])
  right = right + np.concatenate([np.cumsum(kinds[::-1])[::-1], [0]])
  bounds = np.concatenate([[-np.inf], values, [np.inf]])
  right[1:-1][values[1:] == values[:-1]] = -1  # no threshold parts equals
  k = int(np.argmax(right))
  below, above = bounds[k], bounds[k + 1]
  if np.isinf(below):
    return float(above - 1e-6)
  return float(below + 1e-6 if np.isinf(above) else (below + above) / 2)


def fold_accuracies(
  similarity: np.ndarray, same: np.ndarray, *, folds: int = 10
) -> np.ndarray:
  """Returns the accuracy of each fold at the others' best threshold, [F].

  Folds are stretches of pairs in their order, as LFW's list has them.

  Args:
    similarity: [P].
    same: bool [P].
    folds: F.

  Raises:
    ValueError: Fewer pairs than folds, or fewer than 2 folds.
  """
  if not 2 <= folds <= len(same):
    raise ValueError(
      f"folds={folds} of {len(same)} pairs: take 2 to {len(same)}."
    )
  accuracies = []
  for held_out in np.array_split(np.arange(len(same)), folds):
    others = np.ones(len(same), bool)
    others[held_out] = False
    threshold = best_threshold(similarity[others], same[others])
    said = similarity[held_out] > threshold
    accuracies.append(np.mean(said == same[held_out]))
  return np.array(accuracies)


def roc(
  similarity: np.ndarray, same: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns false accept rates, true accept rates and thresholds, falling.

  Args:
    similarity: [P].
    same: bool [P].
  """
  return metrics.roc_curve(same, similarity, drop_intermediate=False)


def true_accept_rate(
  similarity: np.ndarray, same: np.ndarray, false_accept_rate: float
) -> float:
  """Returns the largest true accept rate at most so many false ones allow.

  Args:
    similarity: [P].
    same: bool [P].
    false_accept_rate: Share of the pairs of two persons.
  """
  false, true, _ = roc(similarity, same)
  return float(true[false <= false_accept_rate].max())


def figures(
  similarity: np.ndarray, same: np.ndarray, *, folds: int = 10
) -> dict[str, float]:
  """Returns what papers report of a list of pairs.

  Args:
    similarity: [P].
    same: bool [P].
    folds: F.

  Returns:
    "accuracy" in [0, 1] and "accuracy_std" over the folds, "auc", "tar_at_far
    0.001" and its like, and "count", the number of pairs.
  """
  accuracies = fold_accuracies(similarity, same, folds=folds)
  return {
    "accuracy": float(accuracies.mean()),
    "accuracy_std": float(accuracies.std()),
    "auc": float(metrics.roc_auc_score(same, similarity)),
    **{
      f"tar_at_far_{rate:g}": true_accept_rate(similarity, same, rate)
      for rate in FALSE_ACCEPT_RATES
    },
    "count": len(same),
  }


@dataclasses.dataclass(frozen=True, eq=False)
class Verification:
  """Verification as a problem: embeddings of a batch, figures of a list.

  Images come with their number in `pairs.images` as label, so that order and
  padding of batches do not matter.

  Attributes:
    pairs: From `read_pairs`.
  """

  pairs: Pairs

  def loss(
    self, outputs: Mapping[str, Any], batch: Mapping[str, Any]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Raises: pairs measure what classification trains."""
    raise ValueError(
      "Verification has no loss: train with problem.name='classification'."
    )

  def measure(
    self, outputs: Mapping[str, Any], batch: Mapping[str, Any]
  ) -> dict[str, jax.Array]:
    """Returns the embeddings, and which images they are.

    Args:
      outputs: features [B, D].
      batch: label int32 [B], numbers of images; mask bool [B].
    """
    return {
      "features": outputs["features"].astype(jnp.float32),
      "number": jnp.where(batch["mask"], batch["label"], -1),
    }

  def report(self, measures: Sequence[Any]) -> dict[str, float]:
    """Returns `figures` of the pairs.

    Raises:
      ValueError: An image of a pair was not measured.
    """
    features = np.concatenate([m["features"] for m in measures])
    number = np.concatenate([m["number"] for m in measures])
    kept = number >= 0
    missing = set(range(len(self.pairs.images))) - set(number[kept].tolist())
    if missing:
      name = self.pairs.images[min(missing)]
      raise ValueError(
        f"{len(missing)} images of the pairs were not measured, the first"
        f" {name}: measure all of `pairs.images`."
      )
    embeddings = np.zeros((len(self.pairs.images), features.shape[1]))
    embeddings[number[kept]] = features[kept]
    similarity = similarities(embeddings, self.pairs.first, self.pairs.second)
    return figures(similarity, self.pairs.same, folds=self.pairs.folds)
