"""Metrics that papers report, computed from an accuracy matrix R [T, T].

R[i, j] is the accuracy on task i after task j, in [0, 1], for i <= j.
"""

from collections.abc import Sequence

import numpy as np


def avg_acc(matrix: np.ndarray, task: int) -> float:
  """Returns the mean over tasks 0..task of their accuracy after `task`."""
  return float(np.mean(matrix[: task + 1, task]))


def forgetting(matrix: np.ndarray, task: int) -> float:
  """Returns the mean drop of earlier tasks from their best accuracy (L2P).

  mean_{i<t} (max_{i<=j<=t} R[i, j] - R[i, t]), t = `task` >= 1. The maximum
  includes column t, so the result is never negative.
  """
  drops = [matrix[i, i : task + 1].max() - matrix[i, task] for i in range(task)]
  return float(np.mean(drops))


def backward(matrix: np.ndarray, task: int) -> float:
  """Returns the mean of R[i, t] - R[i, i] over tasks before `task`."""
  return float(np.mean([matrix[i, task] - matrix[i, i] for i in range(task)]))


def learning_acc(matrix: np.ndarray, task: int) -> float:
  """Returns the mean accuracy of each task right after it was learned."""
  return float(np.mean(np.diag(matrix)[: task + 1]))


def seen_acc(matrix: np.ndarray, counts: np.ndarray, task: int) -> float:
  """Returns the accuracy over all test images of tasks 0..task.

  Args:
    matrix: [T, T].
    counts: Test images of each task, [T].
    task: The last task.
  """
  weights = counts[: task + 1]
  return float(np.sum(matrix[: task + 1, task] * weights) / np.sum(weights))


def curve_mean(matrix: np.ndarray, counts: np.ndarray, task: int) -> float:
  """Returns the mean of `seen_acc` over stages 0..task.

  The "average accuracy" of PILOT and PyCIL; L2P's is `avg_acc`.
  """
  return float(np.mean([seen_acc(matrix, counts, j) for j in range(task + 1)]))


def libcontinual_forgetting(matrix: np.ndarray, task: int) -> float:
  """Returns LibContinual's forgetting, which differs from L2P's.

  1/t sum_{i<t-1} (R[i, i] - R[i, t]). It compares with the diagonal, not with
  the best accuracy, and the sum omits task t - 1, although it is divided by t.
  0 for t < 2.
  """
  if task < 2:
    return 0.0
  drops = [matrix[i, i] - matrix[i, task] for i in range(task - 1)]
  return float(np.sum(drops) / task)


def libcontinual_backward(matrix: np.ndarray, task: int) -> float:
  """Returns LibContinual's backward transfer; 0 for t < 2.

  2 / (t (t + 1)) sum_{2<=j<=t} sum_{i<j-1} (R[i, j] - R[i, i])
  """
  if task < 2:
    return 0.0
  gains = [
    matrix[i, j] - matrix[i, i]
    for j in range(2, task + 1)
    for i in range(j - 1)
  ]
  return float(2 * np.sum(gains) / (task * (task + 1)))


def class_incremental(
  matrix: np.ndarray, counts: np.ndarray, task: int, name: str = "acc"
) -> dict[str, float]:
  """Returns the summary after `task`, name -> value.

  What compares with earlier tasks is absent where there are none: forgetting
  and backward transfer after task 0, LibContinual's also after task 1.

  Args:
    matrix: R, [T, T].
    counts: Test images of each task, [T].
    task: The last task.
    name: Of the metric in R, such as "acc".
  """
  summary = {
    f"avg_{name}": avg_acc(matrix, task),
    f"learning_{name}": learning_acc(matrix, task),
    f"seen_{name}": seen_acc(matrix, counts, task),
    f"curve_mean_{name}": curve_mean(matrix, counts, task),
  }
  if task:
    summary["forgetting"] = forgetting(matrix, task)
    summary["backward"] = backward(matrix, task)
  if task > 1:
    summary["libcontinual_forgetting"] = libcontinual_forgetting(matrix, task)
    summary["libcontinual_backward"] = libcontinual_backward(matrix, task)
  return summary


def single_test(values: np.ndarray, name: str = "acc") -> dict[str, float]:
  """Returns the summary where one test set serves all stages.

  Args:
    values: Of a metric after each measured stage, [S].
    name: Of the metric, such as "acc".
  """
  return {
    f"avg_{name}": float(values[-1]),
    f"curve_mean_{name}": float(np.mean(values)),
  }


def pooled(accuracies: Sequence[float], counts: Sequence[int]) -> float:
  """Returns the accuracy over the images of several test sets together.

  Args:
    accuracies: Of each test set, [N].
    counts: Images of each test set, [N].
  """
  weights = np.asarray(counts, np.float64)
  return float(np.sum(np.asarray(accuracies) * weights) / np.sum(weights))


def h_mean(*values: float) -> float:
  """Returns the harmonic mean of accuracies and drops, n / sum(1 / v).

  Of two values it is GS-LoRA's H-mean, 2 r d / (r + d): r is the accuracy on
  retained classes, d the drop of the accuracy on forgotten classes, before
  minus after. The result is 0 if any value is 0 or negative. There the formula
  is infinite or negative or, for d < -r, positive.
  """
  if min(values) <= 0:
    return 0.0
  return len(values) / sum(1 / value for value in values)
