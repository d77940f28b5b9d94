"""torchvision's names of a ViT, such as those of GS-LoRA's ImageNet model."""

import jax
import numpy as np
from flax import traverse_util
from safetensors import numpy as safetensors

from models import layouts
from models import pretrained
from models import vit


def test_torchvision_s_file_is_timm_s_under_other_names(tmp_path):
  model = vit.build("smoke", num_classes=7, image_size=8)
  inputs = {"image": np.zeros((1, 8, 8, 3), np.float32)}
  params = jax.device_get(model.init(jax.random.key(0), inputs)["params"])
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda p: rng.normal(size=p.shape).astype(np.float32), params
  )
  pretrained.save_torch(tmp_path / "timm.safetensors", params, layouts.TIMM)
  timm = safetensors.load_file(tmp_path / "timm.safetensors")
  names = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding"}
  for end in ("weight", "bias"):
    names[f"patch_embed.proj.{end}"] = f"conv_proj.{end}"
    names[f"norm.{end}"] = f"encoder.ln.{end}"
    names[f"head.{end}"] = f"heads.head.{end}"
    for i in range(model.depth):
      block, layer = f"blocks.{i}.", f"encoder.layers.encoder_layer_{i}."
      for theirs, ours in {
        f"ln_1.{end}": f"norm1.{end}",
        f"ln_2.{end}": f"norm2.{end}",
        f"self_attention.in_proj_{end}": f"attn.qkv.{end}",
        f"self_attention.out_proj.{end}": f"attn.proj.{end}",
        # Files from before torchvision's rename, and from after.
        f"mlp.linear_1.{end}" if i else f"mlp.0.{end}": f"mlp.fc1.{end}",
        f"mlp.linear_2.{end}" if i else f"mlp.3.{end}": f"mlp.fc2.{end}",
      }.items():
        names[block + ours] = layer + theirs
  path = tmp_path / "torchvision.safetensors"
  safetensors.save_file({names[k]: v for k, v in timm.items()}, path)
  loaded = traverse_util.flatten_dict(
    pretrained.load(path, params, head="keep", rows=[3, 0, 1, 2, 4, 5, 6])
  )
  for name, value in traverse_util.flatten_dict(params).items():
    rows = [3, 0, 1, 2, 4, 5, 6] if name[0] == "head" else slice(None)
    np.testing.assert_array_equal(loaded[name], value[..., rows])
