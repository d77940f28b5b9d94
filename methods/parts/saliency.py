"""The weights with the largest gradients (SalUn: Fan et al., ICLR 2024)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def largest(
  leaves: Mapping[str, jax.Array], share: float
) -> dict[str, jax.Array]:
  """Returns which entries are among the largest in magnitude over all leaves.

  Args:
    leaves: Name -> array.
    share: Share of all entries that are returned, in (0, 1]; entries that tie
      with the smallest of them are returned, too.

  Returns:
    Name -> bool array.
  """
  sizes = {name: jnp.abs(leaf) for name, leaf in leaves.items()}
  ordered = jnp.sort(jnp.concatenate([s.ravel() for s in sizes.values()]))
  first = min(round((1 - share) * ordered.size), ordered.size - 1)
  return {name: size >= ordered[first] for name, size in sizes.items()}
