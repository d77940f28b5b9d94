"""Methods by the name that a config gives."""

from methods import ascent
from methods import bad_teacher
from methods import dampening
from methods import distilling
from methods import finetune
from methods import frozen
from methods import gs_lora
from methods import hiding
from methods import inflora
from methods import lirf
from methods import lora_sub
from methods import nearest_mean
from methods import penalties
from methods import prompting
from methods import random_labels
from methods import ranpac
from methods import retrain
from methods import scrub
from methods import swapping

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
  "l2": penalties.L2,
  "ewc": penalties.EWC,
  "mas": penalties.MAS,
  "lwf": distilling.LwF,
  "der": distilling.DER,
  "der_plus": distilling.DERPlus,
  "fdr": distilling.FDR,
  "scrub": scrub.Scrub,
  "scrub_s": scrub.ScrubS,
  "lirf": lirf.LIRF,
  "retrain": retrain.Retrain,
  "finetune_retain": retrain.FinetuneRetain,
  "gradient_ascent": ascent.GradientAscent,
  "neg_grad": ascent.NegGrad,
  "random_labels": random_labels.RandomLabels,
  "salun": random_labels.SalUn,
  "bad_teacher": bad_teacher.BadTeacher,
  "ssd": dampening.Dampening,
  "hide_head": hiding.HideHead,
  "swapping": swapping.Swapping,
}
