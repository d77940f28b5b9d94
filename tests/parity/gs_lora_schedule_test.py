"""Rates over epochs, as timm has them for GS-LoRA and its baselines."""

import json

import numpy as np
import pytest

from libml.optim import schedules


@pytest.mark.parametrize(
  "name",
  [
    "gs_lora",
    "baseline_1e4",
    "baseline_1e3",
    "fdr_imagenet",
    "retrain",
    "pretrain_depth6",
    "pretrain_depth12",
    "pretrain_softmax",
  ],
)
@pytest.mark.parametrize("steps", [1, 7])
def test_rate_is_timm_s_in_every_epoch(golden, name, steps):
  stored = golden("gslora", "schedules")
  run = json.loads(str(stored["meta"]))["runs"][name]
  rate = schedules.build(
    "timm_cosine",
    lr=run["lr"],
    epochs=run["epochs"],
    warmup_epochs=run["warmup_epochs"],
    min_lr=run["min_lr"],
  )
  wanted = stored[f"out/{name}"]
  # After a step the clock shows the part of the epoch that is done.
  for step in range(steps):
    clock = np.arange(len(wanted)) + (step + 1) / steps
    found = rate(clock.astype(np.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_warm_up_counts_in_the_cosine(golden):
  rate = schedules.build(
    "timm_cosine", lr=6e-4, epochs=1200, warmup_epochs=10, min_lr=2e-5
  )
  assert float(rate(1.0)) == pytest.approx(1e-6)
  cosine = 2e-5 + (6e-4 - 2e-5) * (1 + np.cos(np.pi * 10 / 1200)) / 2
  assert float(rate(11.0)) == pytest.approx(cosine, rel=1e-6)
  assert cosine < 6e-4
