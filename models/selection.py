"""Selection of an example's prompts from a pool: by key, vote or task."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def normalize(x: jax.Array) -> jax.Array:
  """Scales the last axis of x to unit length, in float32; zero stays zero."""
  x = x.astype(jnp.float32)
  square = jnp.sum(x**2, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def query_from_patches(x: jax.Array, how: str) -> jax.Array:
  """Reduces patch embeddings x [B, N, D] to a query [B, D].

  Args:
    x: [B, N, D], as ViT.embed returns them.
    how: "mean", "max", or "mean_max" = max + 2 mean.

  Raises:
    ValueError: If `how` is none of these.
  """
  match how:
    case "mean":
      return x.mean(axis=1)
    case "max":
      return x.max(axis=1)
    case "mean_max":
      return x.max(axis=1) + 2 * x.mean(axis=1)
  raise ValueError(
    f'Unknown query {how!r}; known: "mean", "max", "mean_max". The class-token'
    " query is the features of a plain ViT."
  )


def majority_vote(
  idx: jax.Array,
  pool_size: int,
  group: int,
  mask: jax.Array | None = None,
) -> jax.Array:
  """Gives all rows of a group the ids that most of its rows chose.

  Args:
    idx: int32[B, K], what each row chose.
    pool_size: M, the number of ids.
    group: Number of neighbouring rows that vote together; divides B.
    mask: bool[B]; rows where it is False have no vote.

  Returns:
    int32[B, K], ids by falling number of votes, ties to the lower id.

  Raises:
    ValueError: If `group` does not divide B.
  """
  batch, top_k = idx.shape
  if group < 1 or batch % group:
    allowed = [g for g in range(1, batch + 1) if batch % g == 0]
    raise ValueError(
      f"vote_group={group} does not divide the batch of {batch}: choose one of"
      f" {allowed}, or turn the vote off with method.vote_group=0."
    )
  votes = jax.nn.one_hot(idx, pool_size, dtype=jnp.int32).sum(axis=1)  # [B, M]
  if mask is not None:
    votes = votes * mask.astype(jnp.int32)[:, None]
  votes = votes.reshape(-1, group, pool_size).sum(axis=1)  # [B / group, M]
  _, winners = jax.lax.top_k(votes, top_k)
  return jnp.repeat(winners, group, axis=0)


def select(
  sim: jax.Array,
  top_k: int,
  *,
  task: jax.Array | None = None,
  vote_group: int | None = None,
  mask: jax.Array | None = None,
) -> jax.Array:
  """Chooses K prompts for each row.

  Args:
    sim: [B, M] similarity of each row to each key.
    top_k: K.
    task: int32[] or [B]; a row gets the block of ids [task K, (task + 1) K)
      if the pool holds it, else the choice is made as without a task. May be
      traced.
    vote_group: Rows that vote together, see majority_vote; None: each row
      gets its own K nearest.
    mask: bool[B]; rows where it is False have no vote.

  Returns:
    int32[B, K], by falling similarity (or votes), ties to the lower id.
  """
  batch, pool_size = sim.shape
  _, idx = jax.lax.top_k(sim, top_k)
  if vote_group is not None:
    idx = majority_vote(idx, pool_size, vote_group, mask)
  if task is not None:
    task = jnp.broadcast_to(task, (batch,))[:, None]
    block = task * top_k + jnp.arange(top_k, dtype=idx.dtype)[None]
    idx = jnp.where((task + 1) * top_k <= pool_size, block, idx)
  return idx


def mean_similarity(
  sim: jax.Array, idx: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  """Sums sim [B, M] over the chosen idx [B, K], averages over the batch.

  Rows where mask [B] is False are left out of the average.
  """
  chosen = jnp.take_along_axis(sim, idx, axis=1).sum(axis=1)  # [B]
  if mask is None:
    return chosen.mean()
  weights = mask.astype(chosen.dtype)
  return jnp.sum(chosen * weights) / jnp.maximum(weights.sum(), 1)
