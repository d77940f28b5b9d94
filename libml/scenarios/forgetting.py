"""Requests to forget classes, one after the other, and their metrics.

GS-LoRA: Zhao et al., "Continual Forgetting for Pre-trained Vision Models",
CVPR 2024, and its extension of 2025.
"""

from collections.abc import Mapping
from collections.abc import Sequence

from libml import datasets
from libml import problems
from libml.scenarios import metrics
from libml.scenarios import sampling
from libml.scenarios import stage as stage_lib

Name = int | str


def forgetting(
  source: datasets.Source,
  *,
  requests: Sequence[Sequence[Name]] | None = None,
  order: Sequence[int] | None = None,
  num_requests: int = 1,
  classes_per_request: int = 1,
  retain: Sequence[Name] | None = None,
  missing: int = 0,
  missing_from: str = "start",
  ratio: float | None = 0.1,
  shots: int | None = None,
  redraw: bool = False,
  sample_seed: int = 1337,
  whole_retain: bool = False,
) -> stage_lib.Scenario:
  """Each request forgets some classes, with a sample of the training images.

  A stage trains on the classes to forget (role "forget") and on all classes
  that are not yet forgotten, those of later requests included ("retain"). It
  has no images of classes that earlier requests forgot. Before the first
  request and after each, these test sets are measured: each request's classes,
  classes that are never forgotten ("kept"), those of them without training
  images ("missing"), and the source's further classes ("others").

  Args:
    source: The images.
    requests: Class ids or names that each request forgets; None: they are
      taken from the end of `order` towards its front.
    order: All class ids; None: natural order.
    num_requests: Number of requests, where `requests` is None.
    classes_per_request: Classes in each request, where `requests` is None.
    retain: Ids or names of the classes that are never forgotten and have
      training images; all others that no request names are missing. None: all
      that no request names, but for `missing` of them.
    missing: How many classes that are never forgotten have no training images.
    missing_from: Whether these are at the "start" or the "end" of `order`.
    ratio: Share of the training images to draw, uniformly; None: all.
    shots: Training images to draw of each class, instead of a share.
    redraw: Whether each request draws anew from all images of its classes, as
      the released code does; otherwise one draw serves all requests.
    sample_seed: Of the draw.
    whole_retain: Whether stages also have the role "retain_all": all training
      images of the classes to retain, whether drawn or not.

  Raises:
    ValueError: An empty request; requests that leave no class; a class that
      does not exist, is named twice, or is both forgotten and retained; a
      number out of range; a class without a test image or a drawn training
      image; a collection or a swap.
  """
  source = stage_lib.single(source)
  total = source.num_classes
  order = _checked(range(total) if order is None else order, total)
  if requests is None:
    requests = _from_order(order, num_requests, classes_per_request)
  forget = _checked_requests(source, requests)
  kept = [c for c in order if not any(c in request for request in forget)]
  classes = _staying(
    source, kept, retain=retain, missing=missing, missing_from=missing_from
  )
  stage_lib.check_source(source)
  train = datasets.Subset.of(source.splits["train"])
  sample = sampling.Sample(
    train, ratio=ratio, shots=shots, redraw=redraw, seed=sample_seed
  )
  # Without `redraw`, all later draws select from this one.
  sample.draw(0, (*classes["kept"], *(c for ids in forget for c in ids)))
  tests = _test_sets(source, forget, classes)
  stages = _stages(
    source, forget, classes, sample=sample, test_sets=tests, whole=whole_retain
  )
  return stage_lib.Scenario(
    stages=stages,
    num_classes=total + len(source.other_names),
    summarize=summarize_forgetting,
    test_sets=tuple(tests),
    class_names=(*source.class_names, *source.other_names),
    before=tests,
    description={
      "requests": [list(map(int, r)) for r in forget],
      **{name: list(map(int, ids)) for name, ids in classes.items()},
      "sample": sample.describe(),
      "images": [{k: len(s) for k, s in t.train.items()} for t in stages],
    },
    seeds={"sample": sample_seed},
  )


def _test_sets(
  source: datasets.Source,
  requests: Sequence[Sequence[int]],
  classes: Mapping[str, tuple[int, ...]],
) -> dict[str, stage_lib.TestSet]:
  """Returns the test sets of requests, of other classes, of other images."""
  known, test = tuple(range(source.num_classes)), source.splits["test"]
  parts = {f"request_{i}": ids for i, ids in enumerate(requests)}
  parts |= {name: ids for name, ids in classes.items() if ids}
  test_sets = {
    name: stage_lib.TestSet(datasets.Subset.of(test, ids), known)
    for name, ids in parts.items()
  }
  if source.others is not None:
    everything = tuple(range(len(known) + len(source.other_names)))
    others = datasets.Subset.of(source.others)
    test_sets["others"] = stage_lib.TestSet(others, everything)
  return test_sets


def _stages(
  source: datasets.Source,
  requests: Sequence[tuple[int, ...]],
  classes: Mapping[str, tuple[int, ...]],
  *,
  sample: sampling.Sample,
  test_sets: Mapping[str, stage_lib.TestSet],
  whole: bool,
) -> tuple[stage_lib.Stage, ...]:
  """Returns a stage for each request.

  Args:
    source: The images.
    requests: Class ids that each forgets.
    classes: Class ids never forgotten: "kept" with training images, "missing"
      without.
    sample: Draws the training images.
    test_sets: Of all stages.
    whole: Whether to add the role "retain_all".
  """
  stages, train = [], source.splits["train"]
  for i, gone in enumerate(requests):
    later = tuple(c for request in requests[i + 1 :] for c in request)
    staying = (*classes["kept"], *later)
    images = {
      "forget": sample.draw(2 * i + 1, gone),
      "retain": sample.draw(2 * i + 2, staying),
    }
    if whole:
      images["retain_all"] = datasets.Subset.of(train, staying)
    roles = {
      "forget": gone,
      "retain": staying,
      "missing": classes["missing"],
      "old": tuple(c for request in requests[:i] for c in request),
      "known": tuple(range(source.num_classes)),
    }
    stages.append(
      stage_lib.Stage(
        index=i,
        goal="forget",
        train=images,
        test_sets=test_sets,
        classes=roles,
        name=f"request {i}: {_shown(source, gone)}",
      )
    )
  return tuple(stages)


def summarize_forgetting(
  rows: Sequence[stage_lib.Row], reading: str, metric: str
) -> dict[str, float]:
  """Returns the summary after the last row's request, name -> value.

  The first row was measured before the first request. Where the metric is
  accuracy, "acc_retain" is that of all classes not yet forgotten, missing ones
  and those of later requests included, and "acc_old" that of all classes which
  earlier requests forgot. "h_mean" takes the drop since the first row, as the
  papers' tables do, "h_mean_previous" the drop since the row before, as the
  released code logs.

  Args:
    rows: As in Scenario.
    reading: As in Scenario.
    metric: As in Scenario.
  """
  requests = sorted(
    (p for p in rows[0] if p.startswith("request_")),
    key=lambda name: int(name.removeprefix("request_")),
  )
  first, last, now = rows[0], rows[-1], len(rows) - 2
  kept = [p for p in ("kept", "missing") if p in last]
  staying = kept + requests[now + 1 :]

  def pooled(row: stage_lib.Row, test_sets: Sequence[str]) -> float:
    found = [row[test_set][reading] for test_set in test_sets]
    counts = [int(f["count"]) for f in found]
    return metrics.pooled([f[metric] for f in found], counts)

  name, retained = problems.short(metric), pooled(last, staying)
  summary = {f"{name}_retain": retained}
  if now >= 0:
    forget = requests[now : now + 1]
    after = pooled(last, forget)
    drop = pooled(first, forget) - after
    since = pooled(rows[-2], forget) - after
    summary = {
      f"{name}_forget": after,
      **summary,
      "drop_forget": drop,
      "drop_retain": pooled(first, staying) - retained,
      "h_mean": metrics.h_mean(retained, drop),
      "h_mean_previous": metrics.h_mean(retained, since),
    }
  if now > 0:
    summary[f"{name}_old"] = pooled(last, requests[:now])
  if "missing" in last:
    trained = [p for p in staying if p != "missing"]
    summary[f"{name}_retain_trained"] = pooled(last, trained)
    summary[f"{name}_missing"] = pooled(last, ["missing"])
  if "others" in last:
    summary[f"{name}_others"] = pooled(last, ["others"])
  return summary


def _from_order(
  order: Sequence[int], count: int, size: int
) -> list[Sequence[int]]:
  if count < 1 or size < 1 or count * size >= len(order):
    raise ValueError(
      f"scenario.num_requests={count} times scenario.classes_per_request="
      f"{size} are {count * size} of {len(order)} classes; both must be 1 or "
      "more, and their product less than the number of classes."
    )
  ends = [len(order) - i * size for i in range(count)]
  return [order[end - size : end] for end in ends]


def _shown(source: datasets.Source, classes: Sequence[int]) -> str:
  return stage_lib.shown([source.class_names[c] for c in classes])


def _checked_requests(
  source: datasets.Source, requests: Sequence[Sequence[Name]]
) -> list[tuple[int, ...]]:
  """Returns the class ids of each request.

  Raises:
    ValueError: Requests that are empty, overlap, or leave no class.
  """
  forget = [source.ids(r, f"request {i}") for i, r in enumerate(requests)]
  if not forget:
    raise ValueError(
      "scenario.requests is empty; name the classes of each request, such as "
      "--my_config.scenario.requests=\"(('cat', 'dog'), ('ship',))\"."
    )
  seen: set[int] = set()
  for i, request in enumerate(forget):
    if not request:
      raise ValueError(
        f"Request {i} (from 0) of scenario.requests is empty; name classes to "
        "forget, or take the request out."
      )
    again = sorted(seen.intersection(request))
    if again:
      raise ValueError(
        f"Request {i} (from 0) of scenario.requests names the classes {again}, "
        "which an earlier request forgets; take them out of one of the two."
      )
    seen.update(request)
  if len(seen) == source.num_classes:
    raise ValueError(
      f"scenario.requests forget all {len(seen)} classes; leave at least one "
      "out."
    )
  return forget


def _checked(order: Sequence[int], total: int) -> tuple[int, ...]:
  """Returns an order of all classes.

  Raises:
    ValueError: A class is missing, is named twice, or does not exist.
  """
  order = tuple(order)
  if sorted(order) != list(range(total)):
    raise ValueError(
      f"scenario.order has {len(order)} entries, such as {order[:5]}; it must "
      f"hold each class id 0 to {total - 1} once."
    )
  return order


def _staying(
  source: datasets.Source,
  kept: Sequence[int],
  *,
  retain: Sequence[Name] | None,
  missing: int,
  missing_from: str,
) -> dict[str, tuple[int, ...]]:
  """Returns the classes never forgotten: "kept" to train on, and "missing".

  Args:
    source: The images.
    kept: Those that no request names, in their order.
    retain: As in `forgetting`.
    missing: As in `forgetting`.
    missing_from: As in `forgetting`.
  """
  if missing_from not in ("start", "end"):
    raise ValueError(
      f"scenario.missing_from={missing_from!r} must be 'start' or 'end'."
    )
  if retain is None:
    trained = _trained(kept, missing, missing_from)
  else:
    trained = _retained(source, kept, retain, missing)
  absent = tuple(c for c in kept if c not in trained)
  return {"kept": trained, "missing": absent}


def _retained(
  source: datasets.Source,
  kept: Sequence[int],
  retain: Sequence[Name],
  missing: int,
) -> tuple[int, ...]:
  """Returns the ids of `retain`: never forgotten, with training images."""
  chosen = source.ids(retain, "scenario.retain")
  both = sorted(set(chosen).difference(kept))
  if both or not chosen:
    raise ValueError(
      f"The classes {both} are both in a request and in scenario.retain; take "
      "them out of one of the two."
      if both
      else "scenario.retain is empty; name classes, or set None for all."
    )
  if missing:
    raise ValueError(
      f"scenario.missing={missing} with scenario.retain: classes that are not "
      "in scenario.retain are missing already; set missing=0."
    )
  return chosen


def _trained(
  kept: Sequence[int], missing: int, missing_from: str
) -> tuple[int, ...]:
  """Returns the kept classes that have training images."""
  if not 0 <= missing < len(kept):
    raise ValueError(
      f"scenario.missing={missing} must be 0 to {len(kept) - 1}: of the "
      f"{len(kept)} classes that no request names, one must have images."
    )
  if missing_from == "start":
    return tuple(kept[missing:])
  return tuple(kept[: len(kept) - missing])
