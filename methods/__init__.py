"""The methods under their names in a config; a file of that name holds each."""

from methods import bad_teacher
from methods import coda_prompt
from methods import der
from methods import der_plus
from methods import dualprompt
from methods import ewc
from methods import fdr
from methods import finetune
from methods import finetune_retain
from methods import frozen
from methods import gradient_ascent
from methods import gs_lora
from methods import gs_lora_plus
from methods import hide_head
from methods import inflora
from methods import joint
from methods import l2
from methods import l2p
from methods import lirf
from methods import lora_sub
from methods import lwf
from methods import mas
from methods import nearest_mean
from methods import neg_grad
from methods import random_labels
from methods import ranpac
from methods import retrain
from methods import salun
from methods import scrub
from methods import scrub_s
from methods import ssd
from methods import swapping

METHODS = {
  "frozen": frozen.Frozen,
  "finetune": finetune.Finetune,
  "joint": joint.Joint,
  "nearest_mean": nearest_mean.NearestMean,
  "ranpac": ranpac.RanPAC,
  "l2p": l2p.L2P,
  "dualprompt": dualprompt.DualPrompt,
  "coda_prompt": coda_prompt.CodaPrompt,
  "lora_sub": lora_sub.LoraSub,
  "inflora": inflora.InfLoRA,
  "gs_lora": gs_lora.GsLora,
  "gs_lora_plus": gs_lora_plus.GsLoraPlus,
  "l2": l2.L2,
  "ewc": ewc.EWC,
  "mas": mas.MAS,
  "lwf": lwf.LwF,
  "der": der.DER,
  "der_plus": der_plus.DERPlus,
  "fdr": fdr.FDR,
  "scrub": scrub.Scrub,
  "scrub_s": scrub_s.ScrubS,
  "lirf": lirf.LIRF,
  "retrain": retrain.Retrain,
  "finetune_retain": finetune_retain.FinetuneRetain,
  "gradient_ascent": gradient_ascent.GradientAscent,
  "neg_grad": neg_grad.NegGrad,
  "random_labels": random_labels.RandomLabels,
  "salun": salun.SalUn,
  "bad_teacher": bad_teacher.BadTeacher,
  "ssd": ssd.SSD,
  "hide_head": hide_head.HideHead,
  "swapping": swapping.Swapping,
}
