"""What else forgets digits, beside configs/digits_gs_lora.py.

  python main.py --my_config configs/digits_baselines.py:method=ewc \
      --workdir ./ewc

":method=" is a row of configs/baselines.py; ":shots=4", ":missing",
":requests=" and ":tune" are those of configs/digits_gs_lora.py.
"""

from configs import baselines
from configs import common
from configs import digits_gs_lora


def get_config(arg=None):
  """Returns requests of two digits each."""
  arg = common.parse_arg(
    arg,
    method="ewc",
    shots=0,
    missing=False,
    requests=4,
    tune=False,
  )
  config = digits_gs_lora.scenario(arg)
  config.name = common.title(arg.method, arg, "shots", "missing")
  baselines.adapt(config, arg, blocks=6)
  return common.finish(config, arg)
