"""Encoder of a transformer: patch embedding, positions and blocks."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from models import anatomy
from models import kernels
from models import layers

# Layer index -> {"tokens": [B, P, D], "prefix": [2, B, L, H, K]}, either or
# both.
LayerPrompts = Mapping[int, Mapping[str, jax.Array]]


class PatchEmbedding(nn.Module):
  """Linear map of square patches, with the parameters of a convolution.

  Attributes:
    width: D.
    patch_size: Side of a patch.
    stride: Distance between neighbouring patches in pixels; None: patch_size.
    padding: Zeros around the image, in pixels on each side.
    uniform: Whether the parameters start as in `layers.uniform_init`.
    dtype: Compute type.
    param_dtype: Type of the parameters.
  """

  width: int
  patch_size: int
  stride: int | None = None
  padding: int = 0
  uniform: bool = False
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    """Maps image [B, S, S, 3] to [B, N, D], patches row by row."""
    side, channels = self.patch_size, image.shape[-1]
    init = {
      "kernel_init": nn.initializers.lecun_normal(),
      "bias_init": nn.initializers.zeros,
    }
    if self.uniform:
      init = layers.uniform_init(side * side * channels)
    kernel = self.param(
      "kernel",
      init["kernel_init"],
      (side, side, channels, self.width),
      self.param_dtype,
    )
    bias = self.param(
      "bias", init["bias_init"], (self.width,), self.param_dtype
    )
    stride = self.stride or side
    if stride == side and not self.padding:
      patches = _cut(image, side)
    else:
      patches = slide(image, side, stride=stride, padding=self.padding)
    patches = patches.reshape(*patches.shape[:2], -1).astype(self.dtype)
    kernel = kernel.reshape(-1, self.width).astype(self.dtype)
    x = kernels.dot_general(patches, kernel, (((2,), (0,)), ((), ())))
    return x + bias.astype(self.dtype)[None, None]


def _cut(image: jax.Array, side: int) -> jax.Array:
  """Cuts image [B, S, S, 3] into patches [B, N, side, side, 3]."""
  batch, height, width, channels = image.shape
  rows, columns = height // side, width // side
  patches = image.reshape(batch, rows, side, columns, side, channels)
  patches = patches.transpose(0, 1, 3, 2, 4, 5)
  return patches.reshape(batch, rows * columns, side, side, channels)


def slide(
  image: jax.Array, side: int, *, stride: int, padding: int
) -> jax.Array:
  """Returns the patches under a window that slides over the padded image.

  Pixels at the right and bottom edges that no whole window covers are left out.

  Args:
    image: [B, S, S, 3].
    side: Side of the window in pixels.
    stride: Distance between neighbouring windows in pixels.
    padding: Zeros around the image, in pixels on each side.

  Returns:
    [B, N, side, side, 3], row by row.
  """
  around = (padding, padding)
  image = jnp.pad(image, ((0, 0), around, around, (0, 0)))
  batch, height, width, channels = image.shape
  rows, columns = (
    jnp.arange((size - side) // stride + 1)[:, None] * stride
    + jnp.arange(side)[None]
    for size in (height, width)
  )
  patches = image[:, rows][:, :, :, columns]  # [B, R, side, C, side, 3]
  patches = patches.transpose(0, 1, 3, 2, 4, 5)
  return patches.reshape(batch, len(rows) * len(columns), side, side, channels)


class PositionEmbedding(nn.Module):
  """Learned position embedding, added to the tokens.

  Attributes:
    std: Standard deviation of the initial values.
    param_dtype: Type of the parameters.
  """

  std: float = 0.02
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps x [B, T, D] to [B, T, D]."""
    shape = (1, *x.shape[1:])
    init = nn.initializers.normal(self.std)
    embedding = self.param("pos_embedding", init, shape, self.param_dtype)
    return x + embedding.astype(x.dtype)


class Encoder(nn.Module):
  """Position embedding, blocks, final norm.

  Attributes:
    depth: Number of blocks.
    block: Builds one block from its name.
    dropout: Rate after the position embedding.
    epsilon: Added to the variance in the final norm.
    position_std: Standard deviation of the initial position embeddings.
    dtype: Type of the result.
    param_dtype: Type of the parameters.
  """

  depth: int
  block: Callable[..., layers.EncoderBlock]
  dropout: float = 0.0
  epsilon: float = 1e-6
  position_std: float = 0.02
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    prompts: LayerPrompts,
    *,
    rows: slice = layers.ALL,
    train: bool = False,
  ) -> jax.Array:
    """Maps x [B, T, D] to rows of [B, P + T, D], P prompts first."""
    x = PositionEmbedding(
      self.position_std, self.param_dtype, name="posembed_input"
    )(x)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    for i in range(self.depth):
      prompt = prompts.get(i, {})
      if "tokens" in prompt:
        tokens = prompt["tokens"].astype(x.dtype)
        x = jnp.concatenate([tokens, x], axis=1)  # [B, P + T, D]
      block = self.block(name=f"encoderblock_{i}")
      last = i + 1 == self.depth
      x = block(
        x,
        prompt.get("prefix"),
        rows=rows if last else layers.ALL,
        train=train,
      )
    return layers.LayerNorm(
      epsilon=self.epsilon,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="encoder_norm",
    )(x)


class EncoderAnatomy(anatomy.Anatomy):
  """Anatomy of models with an Encoder named "Transformer" and one head.

  Attributes:
    image_size: S, the side of an image.
    depth: Number of blocks.
  """

  image_size: int
  depth: int

  def example_input(self, batch_size: int = 1) -> dict[str, np.ndarray]:
    """Returns an input of zeros, "image" [B, S, S, 3]."""
    shape = (batch_size, self.image_size, self.image_size, 3)
    return {"image": np.zeros(shape, np.float32)}

  @property
  def class_heads(self) -> tuple[str, ...]:
    """The one head."""
    return ("head",)

  @property
  def backbone(self) -> tuple[str, ...]:
    """All but the head."""
    return ("embedding", "cls", "Transformer")

  @property
  def stem(self) -> tuple[str, ...]:
    """The embeddings."""
    return ("embedding", "cls", "Transformer/posembed_input")

  @property
  def blocks(self) -> tuple[str, ...]:
    """The encoder's blocks."""
    return tuple(f"Transformer/encoderblock_{i}" for i in range(self.depth))

  @property
  def attention_inputs(self) -> dict[str, str]:
    """The first norm of each block."""
    return {block: f"{block}/LayerNorm_0" for block in self.blocks}

  @property
  def attention_readers(self) -> tuple[str, ...]:
    """Query, key and value of each block."""
    return tuple(
      f"{block}/MultiHeadDotProductAttention_0/{layer}"
      for block in self.blocks
      for layer in ("query", "key", "value")
    )

  @property
  def adaptable(self) -> dict[str, str]:
    """Key and value projections; both layers of the MLP."""
    return {
      "attention": r".*/(key|value)",
      "mlp": r".*/MlpBlock_0/Dense_[01]",
    }
