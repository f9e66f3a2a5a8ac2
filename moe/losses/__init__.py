"""The terms of the objective: cross-entropy, and every balance term by its name.

To add one, write a file with one function, a line in LOSSES, and its weight as a config key.
"""

from collections.abc import Callable

import jax

from moe.config import Config
from moe.losses.device_balance import device_balance
from moe.losses.expert_balance import expert_balance
from moe.losses.router_z import router_z
from moe.losses.statistics import Statistics, Totals

# Name → term(statistics, config, totals), unweighted: a float32 scalar, summed over the MoE layers.
# Its weight is the config key moe.NAME_weight; `objective` adds weight · term,
# and logs it as loss/NAME.
LOSSES: dict[str, Callable[[Statistics, Config, Totals], jax.Array]] = {
  'expert_balance': expert_balance,
  'device_balance': device_balance,
  'router_z': router_z,
}


def weight(config: Config, name: str) -> float:
  """The factor of a term of LOSSES in the objective."""
  return getattr(config.moe, f'{name}_weight')
