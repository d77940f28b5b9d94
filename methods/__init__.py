"""Methods by the name that a config gives."""

from methods import finetune
from methods import nearest_mean
from methods import prompting

METHODS = {
  "finetune": finetune.Finetune,
  "joint": finetune.Joint,
  "nearest_mean": nearest_mean.NearestMean,
  "l2p": prompting.L2P,
  "dualprompt": prompting.DualPrompt,
}
