"""L2P's and DualPrompt's steps in PyTorch, with timm's ViT.

It is a plain, careful implementation: the backbone is frozen and in the compute
type, the query pass has no gradient, and attention is PyTorch's fused kernel.
Weights and prompts are random, so the losses are not those of this project.
"""

import torch
import torch.nn.functional as F
from torch import nn

# timm imports torchvision but uses none of its compiled operations. Those of
# the usual wheel do not load with torch's CPU wheel, so define the two that the
# import needs.
_OPERATIONS = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
  if not hasattr(torch.ops.torchvision, name):
    _OPERATIONS.define(
      f"{name}(Tensor boxes, Tensor scores, float x) -> Tensor"
    )

import timm  # noqa: E402

POOL, TOP_K, LENGTH, G_LENGTH, CLASSES = 10, 4, 10, 5, 100


def _attend(attention, x, prefix):
  """Attends to x [B, T, D] and to a prefix [2, B, L, H, K] or None."""
  batch, tokens, width = x.shape
  heads = attention.num_heads
  qkv = attention.qkv(x).reshape(batch, tokens, 3, heads, width // heads)
  query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [B, H, T, K]
  if prefix is not None:
    prefix = prefix.to(key.dtype).permute(0, 1, 3, 2, 4)
    key = torch.cat([prefix[0], key], dim=2)
    value = torch.cat([prefix[1], value], dim=2)
  x = F.scaled_dot_product_attention(query, key, value)
  return attention.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class Prompted(nn.Module):
  """A ViT with its prompts: "l2p" or "dualprompt"."""

  def __init__(self, variant, method, dtype):
    super().__init__()
    self.vit = timm.create_model(variant, num_classes=0).to(dtype)
    self.vit.requires_grad_(False)
    self.method, self.dtype = method, dtype
    width, depth = self.vit.embed_dim, len(self.vit.blocks)
    heads = self.vit.blocks[0].attn.num_heads
    self.key = nn.Parameter(torch.rand(POOL, width) * 0.01)
    self.head = nn.Linear(width, CLASSES)
    if method == "l2p":
      self.pool = nn.Parameter(torch.rand(POOL, LENGTH, width) * 0.01)
    else:
      head = heads, width // heads
      self.pool = nn.Parameter(torch.rand(3, 2, POOL, G_LENGTH, *head) * 0.01)
      self.shared = nn.Parameter(torch.rand(depth, 2, G_LENGTH, *head) * 0.01)

  def tokens(self, image, prompts=None, prefixes=None):
    """Maps image [B, 3, S, S] to tokens after the final norm."""
    vit = self.vit
    x = vit.patch_embed(image)
    cls = vit.cls_token.expand(x.shape[0], -1, -1)
    x = torch.cat([cls, x], dim=1) + vit.pos_embed
    if prompts is not None:
      x = torch.cat([prompts.to(x.dtype), x], dim=1)
    for i, block in enumerate(vit.blocks):
      prefix = (prefixes or {}).get(i)
      x = x + _attend(block.attn, block.norm1(x), prefix)
      x = x + block.mlp(block.norm2(x))
    return vit.norm(x)

  def query(self, image):
    """Returns queries [B, D]: class tokens without prompts, no gradient."""
    with torch.no_grad():
      return self.tokens(image)[:, 0].float()

  def choose(self, query, task):
    """Returns the ids [B, K] of the prompts, and cosines to all keys."""
    similarity = F.normalize(query, dim=1) @ F.normalize(self.key, dim=1).T
    if self.method == "l2p":
      votes = torch.bincount(
        similarity.topk(TOP_K, dim=1).indices.flatten(), minlength=POOL
      )
      ids = votes.topk(TOP_K).indices.expand(len(query), -1)
    elif task is not None:
      ids = torch.full((len(query), 1), task, dtype=torch.long)
    else:
      ids = similarity.topk(1, dim=1).indices
    return ids, similarity

  def logits(self, image, ids):
    """Returns logits [B, C] of the pass with prompts `ids` [B, K]."""
    if self.method == "l2p":
      prompts = self.pool[ids].flatten(1, 2)  # [B, 40, D]
      x = self.tokens(image, prompts=prompts)
      return self.head(x[:, : prompts.shape[1]].mean(dim=1).float())
    count = image.shape[0]
    prefixes = {
      i: self.shared[i][:, None].expand(-1, count, -1, -1, -1) for i in (0, 1)
    }
    for i in range(3):
      prefixes[2 + i] = self.pool[i][:, ids[:, 0]]
    return self.head(self.tokens(image, prefixes=prefixes)[:, 0].float())

  def loss(self, image, label, allowed, task):
    """Returns the masked cross entropy minus the similarity to chosen keys."""
    ids, similarity = self.choose(self.query(image), task)
    logits = self.logits(image, ids).masked_fill(~allowed, -1e9)
    pull = similarity.gather(1, ids).sum(dim=1).mean()
    return F.cross_entropy(logits, label) - pull


def make(variant, method, dtype, batch_size, image_size, *, compiled, autocast):
  """Returns {"train": step, "evaluate": step}, functions without arguments.

  Args:
    variant: timm's name of the ViT.
    method: "l2p" or "dualprompt".
    dtype: "float32" or "bfloat16".
    batch_size: Images in a step.
    image_size: Side of the images in pixels.
    compiled: Whether torch.compile is used.
    autocast: Whether bfloat16 comes from autocast instead of bfloat16 weights.
  """
  torch.manual_seed(0)
  dtype = getattr(torch, dtype)
  cast = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
  weights = torch.float32 if autocast else dtype
  model = Prompted(variant, method, weights)
  image = torch.randn(batch_size, 3, image_size, image_size).to(weights)
  label = torch.randint(0, 10, (batch_size,))
  allowed = torch.arange(CLASSES) < 10
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.Adam(trained, lr=1e-3)
  loss, query, logits = model.loss, model.query, model.logits
  if compiled:
    loss, query, logits = (torch.compile(f) for f in (loss, query, logits))

  def train():
    optimizer.zero_grad(set_to_none=True)
    with cast:
      value = loss(image, label, allowed, 0)
    value.backward()
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    return float(value.detach())

  def evaluate():
    with torch.no_grad(), cast:
      ids, _ = model.choose(query(image), None)
      return float(logits(image, ids).argmax(dim=1).float().mean())

  return {"train": train, "evaluate": evaluate}
