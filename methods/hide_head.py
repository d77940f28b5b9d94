"""What forgets nothing: the head never names the classes again.

Every audit worth its name must see through it.
"""

import dataclasses

import jax.numpy as jnp

from methods.parts import unlearning

# Of the logit of a hidden class, where the head has a bias.
_NEVER = -1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class HideHead(unlearning.Unlearning):
  """Zeroes the head's columns of the classes to forget.

  Their bias becomes so low that no image gets their name; in a head of cosines,
  which has none, their cosine is 0.
  """

  rewrites = r"head/.*"

  def rounds(self, stage, data):
    """Has none."""
    del stage, data
    return ()

  def after_stage(self, state, stage, data):
    """Hides the classes."""
    del data
    goes = state.memory["forget"]
    head = dict(state.params["head"])
    head["kernel"] = jnp.where(goes[None, :], 0.0, head["kernel"])
    if "bias" in head:
      head["bias"] = jnp.where(goes, _NEVER, head["bias"])
    del stage
    return state.replace(params={**state.params, "head": head})
