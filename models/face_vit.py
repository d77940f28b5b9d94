"""Face Transformer: a ViT for aligned faces with a head of cosines."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from models import encoder
from models import heads
from models import layers
from models import layouts
from models import lora as lora_lib
from models import variants


def _sizes(
  depth: int,
  *,
  patch_size: int = 8,
  stride: int = 8,
  padding: int = 0,
  width: int = 512,
  mlp_dim: int = 2048,
  num_heads: int = 8,
  dropout: float = 0.1,
) -> dict[str, Any]:
  return dict(
    patch_size=patch_size,
    stride=stride,
    padding=padding,
    width=width,
    mlp_dim=mlp_dim,
    num_heads=num_heads,
    depth=depth,
    dropout=dropout,
  )


VARIANTS = {
  "P8S8_6": _sizes(6),
  "P8S8_10": _sizes(10),
  "P8S8_12": _sizes(12),
  "P8S8_18": _sizes(18),
  "P12S8_6": _sizes(6, patch_size=12, padding=4),
  "P12S8_12": _sizes(12, patch_size=12, padding=4),
  # Not published: for runs of a few seconds on images of a few pixels.
  "smoke": _sizes(4, patch_size=4, stride=4, width=16, mlp_dim=32, num_heads=2),
}


class FaceViT(encoder.EncoderAnatomy, nn.Module):
  """Face Transformer (Zhong and Deng, 2021), as GS-LoRA uses it.

  It differs from models/vit.py as follows: attention scores are scaled by 1 /
  sqrt(D) instead of 1 / sqrt(K); query, key and value have no bias; patches may
  overlap; norms add 1e-5 to the variance; initial parameters are drawn like
  torch's. The parameters have ViT's names; the head's kernel is [D, C]. Images
  are RGB in [0, 1] without further normalization.

  Attributes:
    num_classes: C, the columns of the head.
    patch_size: Side of the square patches.
    stride: Distance between neighbouring patches in pixels; divides image_size.
    padding: Zeros around the image, in pixels on each side.
    width: D.
    depth: Number of blocks.
    mlp_dim: Hidden width of the blocks' MLPs.
    num_heads: H; divides width unless head_dim is given.
    head_dim: K, the width of a head; None: D / H.
    image_size: Side of the square images.
    dropout: Rate in the blocks and after the position embedding.
    head: Key of heads.HEADS.
    scale: Scale of the head's logits; None: the default of this head.
    margin: Margin of the head; None: the default of this head.
    dtype: Compute type; norms, softmax, features and head stay float32.
    param_dtype: Type of the parameters.
    dense: Class of the blocks' dense layers, such as nn.DenseGeneral or a
      lora.Lora.

  Raises:
    ValueError: On construction, if sizes do not divide or a name is unknown.
  """

  num_classes: int
  patch_size: int
  stride: int
  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  padding: int = 0
  head_dim: int | None = None
  image_size: int = 112
  dropout: float = 0.1
  head: str = "cosface"
  scale: float | None = None
  margin: float | None = None
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32
  dense: layers.Dense = nn.DenseGeneral

  def __post_init__(self) -> None:
    """Rejects sizes and names that do not fit together."""
    if self.image_size % self.stride or self.image_size < self.stride:
      below = self.image_size // self.stride * self.stride
      raise ValueError(
        f"image_size={self.image_size} is not a multiple of"
        f" stride={self.stride}: resize the images to"
        f" {below or self.stride} or {below + self.stride}."
      )
    if self.head_dim is None and self.width % self.num_heads:
      raise ValueError(
        f"width={self.width} is not a multiple of num_heads={self.num_heads}:"
        " choose a number of heads that divides the width, or set head_dim."
      )
    if self.head_dim is not None and self.head_dim < 1:
      raise ValueError(
        f"head_dim={self.head_dim} must be at least 1, or None: width /"
        " num_heads."
      )
    for name in ("dtype", "param_dtype"):
      try:
        jnp.dtype(getattr(self, name))
      except TypeError:
        raise ValueError(
          f"Unknown {name} {getattr(self, name)!r}; use 'float32' or"
          " 'bfloat16'."
        ) from None
    heads.check(self.head, scale=self.scale, margin=self.margin)
    super().__post_init__()

  def setup(self) -> None:
    """Declares the parameters under ViT's names."""
    dtype, param_dtype = jnp.dtype(self.dtype), jnp.dtype(self.param_dtype)
    self.embedding = encoder.PatchEmbedding(
      width=self.width,
      patch_size=self.patch_size,
      stride=self.stride,
      padding=self.padding,
      uniform=True,
      dtype=dtype,
      param_dtype=param_dtype,
    )
    self.cls = self.param(
      "cls", nn.initializers.normal(1.0), (1, 1, self.width), param_dtype
    )
    self.encoder = encoder.Encoder(
      depth=self.depth,
      block=functools.partial(layers.EncoderBlock, **self._block()),
      dropout=self.dropout,
      epsilon=1e-5,
      position_std=1.0,
      dtype=jnp.promote_types(dtype, jnp.float32),
      param_dtype=param_dtype,
      name="Transformer",
    )
    self.classifier = heads.build(
      self.head,
      scale=self.scale,
      margin=self.margin,
      num_classes=self.num_classes,
      param_dtype=param_dtype,
      name="head",
    )

  def _block(self) -> dict[str, Any]:
    """Returns the fields of a block."""
    return dict(
      num_heads=self.num_heads,
      head_dim=self.head_dim,
      mlp_dim=self.mlp_dim,
      dropout=self.dropout,
      gelu="erf",
      epsilon=1e-5,
      scale=self.width**-0.5,
      qkv_bias=False,
      uniform=True,
      dtype=jnp.dtype(self.dtype),
      param_dtype=jnp.dtype(self.param_dtype),
      dense=self.dense,
    )

  @property
  def mixes(self) -> bool:
    """Whether labels may be probabilities."""
    return not heads.needs_label(self.head)

  @property
  def torch_layout(self) -> layouts.Layout:
    """The layout of the published weights."""
    return layouts.FACE

  @property
  def num_patches(self) -> int:
    """N, the number of patches of an image."""
    free = self.image_size + 2 * self.padding - self.patch_size
    return (free // self.stride + 1) ** 2

  def __call__(
    self, inputs: Mapping[str, Any], *, train: bool = False
  ) -> dict[str, Any]:
    """Classifies images.

    Args:
      inputs: "image" [B, S, S, 3]; "label" int32 [B], which a head with a
        margin needs in training; wherever a label is given, the margin is
        applied to its logit. Other entries are ignored.
      train: Whether dropout is active (then apply needs rngs "dropout").

    Returns:
      "features" [B, D], the class token after the last norm; and the head's
      outputs: "logits" [B, C]; "readings", {"_no_margin": logits [B, C]}, of a
      head with a margin; "loss" [B] of a head with its own loss. All float32.

    Raises:
      ValueError: If a head with a margin gets no label in training or labels
        that are probabilities, or an input's shape does not fit the model, or
        there are prompts.
    """
    if inputs.get("prompts"):
      raise ValueError(
        "The Face Transformer takes no prompts: set model.name='vit', or use"
        " another method."
      )
    x = self.encode(inputs["image"], rows=slice(1), train=train)
    features = x[:, 0]
    outputs = self.classify(features, inputs.get("label"), train=train)
    if self.is_initializing() and isinstance(self.dense, lora_lib.Lora):
      self.dense.check(self.variables["params"], self.blocks)
    return {"features": features, **outputs}

  def classify(
    self,
    features: jax.Array,
    label: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> dict[str, Any]:
    """Maps features [B, D] to the head's outputs; see `__call__`."""
    return self.classifier(features, label, train=train)

  def encode(
    self, image: jax.Array, *, rows: slice = layers.ALL, train: bool = False
  ) -> jax.Array:
    """Maps image [B, S, S, 3] to tokens [B, 1 + N, D], float32.

    The tokens are the class token and N patches. The last layer computes and
    returns only those in `rows`.
    """
    x = self.embed(image)
    cls = jnp.broadcast_to(self.cls, (x.shape[0], 1, self.width))
    x = jnp.concatenate([cls.astype(x.dtype), x], axis=1)  # [B, 1 + N, D]
    return self.encoder(x, {}, rows=rows, train=train)

  def embed(self, image: jax.Array) -> jax.Array:
    """Maps image [B, S, S, 3] to patch embeddings [B, N, D], row by row."""
    expected = (self.image_size, self.image_size, 3)
    if image.ndim != 4 or image.shape[1:] != expected:
      raise ValueError(
        f"Images have shape {image.shape}, but this model takes (batch,"
        f" {self.image_size}, {self.image_size}, 3): resize the images, or set"
        " model.image_size."
      )
    return self.embedding(image)


def build(
  variant: str | None = None,
  *,
  lora: Mapping[str, Any] | None = None,
  **overrides: Any,
) -> FaceViT:
  """Returns a FaceViT: an entry of VARIANTS, with some of its fields replaced.

  Args:
    variant: Name in VARIANTS; None if the overrides give all sizes.
    lora: Fields of lora.Lora; None: no adapters.
    **overrides: Fields of FaceViT; num_classes is always needed.

  Raises:
    ValueError: If the variant or a field of lora is unknown, or the fields do
      not fit together.
  """
  fields = variants.fields(
    "Face Transformer", VARIANTS, variant, lora=lora, **overrides
  )
  return FaceViT(**fields)
