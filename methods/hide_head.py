"""What forgets nothing: the head never names the classes again.

Every audit worth its name must see through it.
"""

import dataclasses

import jax.numpy as jnp

from libml import trees
from methods.parts import unlearning

# Of the logit of a hidden class, where the head has a bias.
_NEVER = -1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class HideHead(unlearning.Unlearning):
  """Zeroes the head's columns of the classes to forget.

  Their bias becomes so low that no image gets their name; in a head of cosines,
  which has none, their cosine is 0.
  """

  @property
  def rewrites(self):
    """The heads."""
    return trees.pattern(self.model.class_heads)

  def rounds(self, stage, data):
    """Has none."""
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
