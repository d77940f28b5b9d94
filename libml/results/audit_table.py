"""Audits as a text table, with what each row means."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich import console
from rich import table
from rich import text

from libml.results import cells as cells_lib

# Row -> its meaning, in one line. Unless a line says otherwise, values are in %
# and on test images of the classes forgotten so far.
MEANINGS = {
  "probe, new head": "accuracy of a new head over all classes, frozen features",
  "probe, forgotten only": "accuracy of a new head of the forgotten classes",
  "left, new head": "part left above retrained (or chance): 100 all, 0 none",
  "left, forgotten only": "the same for the probe of forgotten classes only",
  "steps to relearn": (
    "until 90 % of before (or of its best) is back; few: hidden"
  ),
  "membership, test": "AUC (95 % interval), training vs. test; 50: no trace",
  "membership, held out": (
    "against kept classes' test images; no trace: as retrained"
  ),
  "membership, kept": "control: AUC, training against test of kept classes",
  "average gap": "mean absolute difference of accuracy from retrained",
  "tug-of-war": "product of 1 - difference; 100: as good as retrained",
  "KL, forgotten": "KL(retrained || model) of the predictions, in nats",
  "KL, kept": "the same on test images of kept classes",
  "drift, cosine": "cosine of kept classes' features, first to now; 1: same",
  "drift, class means": "change of kept classes' mean features over their norm",
}

MODELS = ("before", "after", "retrained")


_INTERVAL = ("auc", "low", "high")


def _number(value: float | None) -> str:
  return "" if value is None else f"{value:.3f}"


def _area(found: Mapping[str, Any] | None) -> str:
  if found is None:
    return ""
  area, low, high = (f"{100 * found[name]:.0f}" for name in _INTERVAL)
  return f"{area} ({low}-{high})"


def _steps(taught: Mapping[str, Any], most: int) -> str:
  return f">{most}" if taught["steps"] is None else str(taught["steps"])


def rows(audit: Mapping[str, Any]) -> dict[str, dict[str, str]]:
  """Returns {row: {model: cell}}; rows without a value are left out.

  Args:
    audit: What `Audits.run` returned.
  """
  cells: dict[str, dict[str, str]] = {name: {} for name in MEANINGS}
  kinds = {"head": "new head", "fresh": "forgotten only"}
  for kind, words in kinds.items():
    probe = audit["linear_probe"][kind] or {}
    for model in MODELS:
      if model in probe:
        accuracy = probe[model]["forget"]
        cells[f"probe, {words}"][model] = cells_lib.percent(accuracy)
    cells[f"left, {words}"]["after"] = cells_lib.percent(probe.get("left"))
  relearning = audit["relearning"]
  for model in MODELS:
    if model in relearning:
      steps = _steps(relearning[model], relearning["max_steps"])
      cells["steps to relearn"][model] = steps
      for attack, found in audit["membership"][model].items():
        row = cells[f"membership, {attack.replace('_', ' ')}"]
        row[model] = _area(found)
  for model, found in audit.get("distance", {}).items():
    cells["average gap"][model] = cells_lib.percent(found["average_gap"])
    cells["tug-of-war"][model] = cells_lib.percent(found["tug_of_war"])
    cells["KL, forgotten"][model] = _number(found["kl"]["forget"])
    cells["KL, kept"][model] = _number(found["kl"]["retain"])
  cells["drift, cosine"]["after"] = _number(audit["drift"]["cosine"])
  cells["drift, class means"]["after"] = _number(audit["drift"]["mean_change"])
  return {name: row for name, row in cells.items() if any(row.values())}


def audit_table(audit: Mapping[str, Any], title: str) -> console.Group:
  """Returns a table of one stage's audits, with the meaning of each row below.

  Args:
    audit: What `Audits.run` returned; not {}.
    title: Such as the run's name.
  """
  heading = f"{title}: what the model still knows (%)"
  out, legend = (
    table.Table(box=style, padding=(0, 1, 0, 0))
    for style in (box.SIMPLE_HEAD, None)
  )
  models = [model for model in MODELS if model in audit["relearning"]]
  out.add_column("audit", no_wrap=True)
  for model in models:
    out.add_column(model, justify="right", no_wrap=True)
  legend.show_header = False
  for name, row in rows(audit).items():
    out.add_row(name, *(row.get(model, "") for model in models))
    legend.add_row(f" {name}", MEANINGS[name])
  return console.Group(text.Text(heading, style="bold"), out, legend)
