"""Weights that a config makes for others, kept in the cache."""

import pathlib

import numpy as np

import main
from libml.train import made_once


def test_damaged_weights_are_made_again_from_their_run(tmp_path, monkeypatch):
  monkeypatch.setattr(made_once, "CACHE", tmp_path)
  path = pathlib.Path(
    main.upstream(lambda: False, None, "glyphs_pretrain:smoke")
  )
  good = path.read_bytes()
  assert len(np.load(path).files) > 20
  path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
  again = main.upstream(lambda: False, None, "glyphs_pretrain:smoke")
  assert pathlib.Path(again).read_bytes() == good
