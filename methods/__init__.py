"""Methods by the name that a config gives."""

from methods import finetune
from methods import frozen
from methods import gs_lora
from methods import inflora
from methods import lora_sub
from methods import nearest_mean
from methods import prompting
from methods import ranpac

METHODS = {
  "frozen": frozen.Frozen,
  "finetune": finetune.Finetune,
  "joint": finetune.Joint,
  "nearest_mean": nearest_mean.NearestMean,
  "ranpac": ranpac.RanPAC,
  "l2p": prompting.L2P,
  "dualprompt": prompting.DualPrompt,
  "lora_sub": lora_sub.LoraSub,
  "inflora": inflora.InfLoRA,
  "gs_lora": gs_lora.GsLora,
  "gs_lora_plus": gs_lora.GsLoraPlus,
}
