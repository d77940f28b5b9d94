"""Hides classes in the head alone: a control that forgets nothing.

The features stay as they are, so an audit must report that the classes can be
recovered.
"""

import dataclasses

import jax.numpy as jnp

from libml import trees
from methods.parts import unlearning

# Bias of a hidden class: its logit is never the largest.
_NEVER = -1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class HideHead(unlearning.Unlearning):
  """Zeroes the head's columns of the classes to forget.

  Their biases become so low that no image is assigned to them. A head of
  cosines has no bias; there the cosine of a hidden class is 0.
  """

  @property
  def rewrites(self):
    """The heads' parameters."""
    return trees.pattern(self.model.class_heads)

  def rounds(self, stage, data):
    """Trains nothing."""
    del stage, data
    return ()

  def after_stage(self, state, stage, data):
    """Hides the classes."""
    del stage, data
    goes, heads = state.memory["forget"], self.model.class_heads

    def hide(name, leaf):
      if trees.holder(name, heads) is None:
        return leaf
      hidden = _NEVER if name.endswith("/bias") else 0.0
      where = goes.reshape((1,) * (leaf.ndim - 1) + goes.shape)
      return jnp.where(where, hidden, leaf)

    return state.replace(params=trees.map_named(hide, state.params))
