"""Vision Transformer that takes prompts, with the official parameter names."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from models import encoder
from models import layers
from models import layouts
from models import lora as lora_lib
from models import variants

CLASSIFIERS = ("token", "gap", "prompt", "token+prompt")


def _sizes(
  patch_size: int,
  width: int,
  mlp_dim: int,
  *,
  num_heads: int,
  depth: int,
  dropout: float = 0.0,
) -> dict[str, Any]:
  return dict(
    patch_size=patch_size,
    width=width,
    mlp_dim=mlp_dim,
    num_heads=num_heads,
    depth=depth,
    dropout=dropout,
  )


VARIANTS = {
  "ViT-Ti_16": _sizes(16, 192, 768, num_heads=3, depth=12),
  "ViT-S_16": _sizes(16, 384, 1536, num_heads=6, depth=12),
  "ViT-B_16": _sizes(16, 768, 3072, num_heads=12, depth=12),
  "ViT-B_32": _sizes(32, 768, 3072, num_heads=12, depth=12),
  "ViT-B_16_2X2": _sizes(2, 768, 3072, num_heads=12, depth=12),
  "ViT-B_16_4X4": _sizes(4, 768, 3072, num_heads=12, depth=12),
  "ViT-L_16": _sizes(16, 1024, 4096, num_heads=16, depth=24, dropout=0.1),
  "ViT-L_32": _sizes(32, 1024, 4096, num_heads=16, depth=24),
  "ViT-H_14": _sizes(14, 1280, 5120, num_heads=16, depth=32, dropout=0.1),
  "testing": _sizes(16, 10, 10, num_heads=2, depth=1, dropout=0.1),
  # Not official: for images of a few pixels, and for runs of a few seconds.
  "small_images": _sizes(2, 64, 256, num_heads=4, depth=6),
  "smoke": _sizes(4, 16, 32, num_heads=2, depth=5),
}


class ViT(encoder.EncoderAnatomy, nn.Module):
  """Vision Transformer for classification (Dosovitskiy et al., ICLR 2021).

  The parameters have the names and layouts of the official .npz files (those
  for Flax Linen). Prompts are inputs, not parameters: see models/prompts.py.

  Attributes:
    num_classes: C, the columns of the head.
    patch_size: Side of the square patches; divides image_size.
    width: D.
    depth: Number of blocks.
    mlp_dim: Hidden width of the blocks' MLPs.
    num_heads: H; divides width.
    image_size: Side of the square images.
    dropout: Rate in the blocks and after the position embedding.
    attention_dropout: Rate on the attention weights.
    gelu: "tanh" (official ViT) or "erf" (DeiT and timm).
    classifier: Which tokens the feature is the mean of: "token" the class
      token, "gap" all, "prompt" the prompts, "token+prompt" both of these.
    norm_pre_logits: Whether the head sees the feature at unit length.
    temperature: Divisor of the logits.
    block_epsilon: Added to the variance in the blocks' norms; the last norm
      adds 1e-6.
    dtype: Compute type; norms, softmax, features and head stay float32.
    param_dtype: Type of the parameters.
    dense: Class of the blocks' dense layers, such as nn.DenseGeneral or a
      lora.Lora.

  Raises:
    ValueError: On construction, if sizes do not divide or a name is unknown.
  """

  num_classes: int
  patch_size: int
  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  image_size: int = 224
  dropout: float = 0.0
  attention_dropout: float = 0.0
  gelu: str = "tanh"
  classifier: str = "token"
  norm_pre_logits: bool = False
  temperature: float = 1.0
  block_epsilon: float = 1e-6
  dtype: DTypeLike = jnp.float32
  param_dtype: DTypeLike = jnp.float32
  dense: layers.Dense = nn.DenseGeneral

  def __post_init__(self) -> None:
    """Rejects sizes and names that do not fit together."""
    if self.image_size % self.patch_size:
      below = self.image_size // self.patch_size * self.patch_size
      raise ValueError(
        f"image_size={self.image_size} is not a multiple of"
        f" patch_size={self.patch_size}: resize the images to"
        f" {below or self.patch_size} or {below + self.patch_size}."
      )
    if self.width % self.num_heads:
      raise ValueError(
        f"width={self.width} is not a multiple of num_heads={self.num_heads}:"
        " choose a number of heads that divides the width."
      )
    if self.classifier not in CLASSIFIERS:
      raise ValueError(
        f"Unknown classifier {self.classifier!r}; known: {CLASSIFIERS}."
      )
    for name in ("dtype", "param_dtype"):
      try:
        jnp.dtype(getattr(self, name))
      except TypeError:
        raise ValueError(
          f"Unknown {name} {getattr(self, name)!r}; use 'float32' or"
          " 'bfloat16'."
        ) from None
    if self.gelu not in layers.GELUS:
      raise ValueError(
        f"Unknown gelu {self.gelu!r}; known: {tuple(layers.GELUS)}."
      )
    super().__post_init__()

  def setup(self) -> None:
    """Declares the parameters under their official names."""
    dtype, param_dtype = jnp.dtype(self.dtype), jnp.dtype(self.param_dtype)
    self.embedding = encoder.PatchEmbedding(
      width=self.width,
      patch_size=self.patch_size,
      dtype=dtype,
      param_dtype=param_dtype,
    )
    self.cls = self.param(
      "cls", nn.initializers.zeros, (1, 1, self.width), param_dtype
    )
    self.encoder = encoder.Encoder(
      depth=self.depth,
      block=functools.partial(
        layers.EncoderBlock,
        num_heads=self.num_heads,
        mlp_dim=self.mlp_dim,
        dropout=self.dropout,
        attention_dropout=self.attention_dropout,
        gelu=self.gelu,
        epsilon=self.block_epsilon,
        dtype=dtype,
        param_dtype=param_dtype,
        dense=self.dense,
      ),
      dropout=self.dropout,
      param_dtype=param_dtype,
      name="Transformer",
    )
    self.head = nn.Dense(
      self.num_classes,
      dtype=jnp.float32,
      param_dtype=param_dtype,
      kernel_init=nn.initializers.zeros,
    )

  @property
  def torch_layout(self) -> layouts.Layout:
    """The layout of timm."""
    return layouts.TIMM

  @property
  def num_patches(self) -> int:
    """N, the number of patches of an image."""
    return (self.image_size // self.patch_size) ** 2

  def __call__(
    self, inputs: Mapping[str, Any], *, train: bool = False
  ) -> dict[str, jax.Array]:
    """Classifies images.

    Args:
      inputs: "image" [B, S, S, 3]; optional "prompts", layer index ->
        {"tokens": [B, P, D] and / or "prefix": [2, B, L, H, K]}; optional
        "reweight" [P], logits of the weights that classifier "prompt" gives
        the prompt tokens. Other entries are ignored. Tokens are prepended
        before their layer, get no position embedding and stay for all later
        layers, the newest first.
      train: Whether dropout is active (then apply needs rngs "dropout").

    Returns:
      "features" [B, D] and "logits" [B, C], both float32; the features as
      they are before norm_pre_logits.

    Raises:
      ValueError: If classifier "prompt" gets no prompt tokens, or an input's
        shape does not fit the model.
    """
    prompts = inputs.get("prompts") or {}
    rows = self._rows(prompts)
    x = self.encode(inputs["image"], prompts, rows=rows, train=train)
    features = self._features(x, inputs.get("reweight"))
    outputs = self.classify(features)
    if self.is_initializing() and isinstance(self.dense, lora_lib.Lora):
      self.dense.check(self.variables["params"], self.blocks)
    return {"features": features, **outputs}

  def classify(
    self,
    features: jax.Array,
    label: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> dict[str, jax.Array]:
    """Maps features [B, D] to "logits" [B, C] with the head.

    `label` and `train` are not used: this head has no margin.
    """
    del label, train
    x = features
    if self.norm_pre_logits:
      # The floor keeps the gradient of the root finite at zero.
      square = jnp.sum(x**2, axis=-1, keepdims=True)
      x = x / (jnp.sqrt(jnp.maximum(square, 1e-20)) + 1e-10)
    return {"logits": self.head(x) / self.temperature}

  def encode(
    self,
    image: jax.Array,
    prompts: encoder.LayerPrompts | None = None,
    *,
    rows: slice = layers.ALL,
    train: bool = False,
  ) -> jax.Array:
    """Maps image [B, S, S, 3] to tokens [B, P + 1 + N, D], float32.

    The tokens are P prompts, the class token and N patches. The last layer
    computes and returns only those in `rows`.

    Raises:
      ValueError: There are prompts for a layer that the model does not have, or
        images of another shape.
    """
    prompts = prompts or {}
    outside = sorted(set(prompts) - set(range(self.depth)))
    if outside:
      raise ValueError(
        f"There are prompts for layers {outside}, but the layers of this model"
        f" are 0 to {self.depth - 1}: give prompts to these layers only."
      )
    x = self.embed(image)
    cls = jnp.broadcast_to(self.cls, (x.shape[0], 1, self.width))
    x = jnp.concatenate([cls.astype(x.dtype), x], axis=1)  # [B, 1 + N, D]
    return self.encoder(x, prompts, rows=rows, train=train)

  def embed(self, image: jax.Array) -> jax.Array:
    """Maps image [B, S, S, 3] to patch embeddings [B, N, D], row by row.

    The class token and the position embedding are not added yet.

    Raises:
      ValueError: The images have another shape.
    """
    expected = (self.image_size, self.image_size, 3)
    if image.ndim != 4 or image.shape[1:] != expected:
      raise ValueError(
        f"Images have shape {image.shape}, but this model takes (batch,"
        f" {self.image_size}, {self.image_size}, 3): resize the images, or set"
        " model.image_size."
      )
    return self.embedding(image)

  def _rows(self, prompts: encoder.LayerPrompts) -> slice:
    """Returns the slice of tokens of which the feature is the mean."""
    num_prompts = sum(
      prompt["tokens"].shape[1]
      for prompt in prompts.values()
      if "tokens" in prompt
    )
    match self.classifier:
      case "token":
        return slice(num_prompts, num_prompts + 1)
      case "gap":
        return layers.ALL
      case "token+prompt":
        return slice(num_prompts + 1)
    if not num_prompts and self.is_initializing():
      return slice(1)  # no parameter of this module depends on prompts
    if not num_prompts:
      raise ValueError(
        'classifier="prompt" averages prompt tokens and got none: give'
        ' inputs["prompts"] with "tokens", or use classifier="token".'
      )
    return slice(num_prompts)

  def _features(self, x: jax.Array, reweight: jax.Array | None) -> jax.Array:
    """Averages x [B, R, D], the tokens that `_rows` chose, to [B, D]."""
    if self.classifier != "prompt" or reweight is None:
      return x.mean(axis=1)
    num_prompts = x.shape[1]
    if reweight.shape != (num_prompts,):
      raise ValueError(
        f"reweight has shape {reweight.shape} for {num_prompts} prompt tokens:"
        " give one logit for each token."
      )
    weights = nn.softmax(reweight.astype(jnp.float32))
    return jnp.einsum("p,bpd->bd", weights, x)


def build(
  variant: str | None = None,
  *,
  lora: Mapping[str, Any] | None = None,
  **overrides: Any,
) -> ViT:
  """Returns a ViT: an entry of VARIANTS, with some of ViT's fields replaced.

  Args:
    variant: Name in VARIANTS; None if the overrides give all sizes.
    lora: Fields of lora.Lora; None: no adapters.
    **overrides: Fields of ViT; num_classes is always needed.

  Raises:
    ValueError: If the variant or a field of lora is unknown, or the fields do
      not fit together.
  """
  return ViT(
    **variants.fields("ViT", VARIANTS, variant, lora=lora, **overrides)
  )
