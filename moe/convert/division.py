"""Which hidden units of a dense FFN each expert gets, so that a token's experts hold all of them.

Unit h adds down_h · silu(gate_h · u) · (up_h · u) to a SwiGLU FFN, whatever the other units do. So
an FFN equals a sum of smaller FFNs that hold each of its units once, or hold a copies of a unit
and each scale its down row by 1/a.

F hidden width of an expert, E routed experts, K routed experts per token, S shared experts,
G experts per group.
"""

from typing import NamedTuple

import numpy as np

from moe.config import Config
from moe.errors import UserError


class Division(NamedTuple):
  """How a dense FFN's units are dealt out. Routed expert e has the units of part e mod G.

  Experts iG to iG + G − 1 form a group. A group and the shared experts together hold every unit.
  """

  shared_X: np.ndarray  # the S·F units of the shared experts
  parts_GF: np.ndarray
  copies_X: np.ndarray  # copies of each unit of the FFN in a group and the shared experts together
  groups: int  # whole groups that a token goes to: K/G

  @property
  def group(self) -> int:
    return len(self.parts_GF)


def divide(config: Config, d_ff: int, generator: np.random.Generator) -> Division:
  """Deals out the units of a dense FFN of width `d_ff`.

  The shared experts get the first units. Copies of a unit go to different experts at random: two
  experts with the same units that are always chosen together would never become different.
  UserError, which names the keys, if a token's experts cannot hold the FFN.
  """
  moe, f = config.moe, config.moe.d_expert
  shared, k = moe.num_shared_experts * f, moe.experts_per_token
  given = f'moe.d_expert={f} and the dense run has model.d_ff={d_ff}'
  if f > d_ff:
    raise UserError(f'{given}: an expert must be no wider than the dense FFN')
  if shared > d_ff:
    raise UserError(
      f'moe.num_shared_experts={moe.num_shared_experts} of {given}: '
      'together the shared experts must be no wider than the dense FFN'
    )
  if shared + k * f < d_ff:
    raise UserError(
      f'moe.num_shared_experts={moe.num_shared_experts} + moe.experts_per_token={k} of {given}: '
      f"a token's {shared + k * f} hidden units cannot hold the FFN: give it more or wider experts"
    )
  if moe.router == 'hash' and moe.num_experts % k:
    raise UserError(
      f"moe.num_experts={moe.num_experts} with moe.router='hash' must be a multiple of "
      f'moe.experts_per_token={k}: only then have any {k} consecutive experts the whole FFN'
    )
  group = k if moe.router == 'hash' else _group(config, d_ff)
  extra, units = shared + group * f, np.arange(d_ff)
  copies_X = extra // d_ff + (units < extra % d_ff)
  routed_X = copies_X - (units < shared)
  return Division(units[:shared], _deal(routed_X, group, generator), copies_X, k // group)


def _group(config, d_ff):
  """The smallest divisor of K whose experts hold the FFN together with the shared ones; K if that
  divisor does not divide E.
  """
  moe = config.moe
  fits = lambda g: (moe.num_shared_experts + g) * moe.d_expert >= d_ff
  k = moe.experts_per_token
  group = next(g for g in range(1, k + 1) if not k % g and fits(g))
  return k if moe.num_experts % group else group


def _deal(copies_X, group, generator):
  """parts_GF, each part in ascending order. Every copy of a unit goes to a different part. The
  emptiest parts come first, so that all end equally full.
  """
  parts: list[list[int]] = [[] for _ in range(group)]
  filled_G = np.zeros(group)
  for unit, copies in enumerate(copies_X):
    for part in np.argsort(filled_G + generator.random(group))[:copies]:
      parts[part].append(unit)
      filled_G[part] += 1
  return np.array(parts)
