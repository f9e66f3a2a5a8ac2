"""Which hidden units of a dense FFN each expert gets, so that a token's experts hold all of them.

A unit's part of a SwiGLU FFN, down_h · silu(gate_h · u) · (up_h · u), depends on no other unit: a
FFN is the sum of any FFNs that have each of its units once, or a times with 1/a of its down row.

F hidden width of an expert, E routed experts, K of a token, S shared ones, G experts of a group.
"""

from typing import NamedTuple

import numpy as np

from moe.config import Config
from moe.errors import UserError


class Division(NamedTuple):
  """A dense FFN's units, dealt out. Routed expert e has the units of part e mod G.

  G consecutive experts, from a multiple of G on, are a group: with the shared experts they hold
  every unit.
  """

  shared_X: np.ndarray  # the S·F units of the shared experts
  parts_GF: np.ndarray
  copies_X: np.ndarray  # how often a group with the shared experts holds each unit of the FFN
  groups: int  # how many whole groups a token goes to: K/G

  @property
  def group(self) -> int:
    return len(self.parts_GF)


def divide(config: Config, d_ff: int, generator: np.random.Generator) -> Division:
  """Deals out the units of a dense FFN of width `d_ff`.

  The shared experts get the first ones. Copies of a unit go to different experts, drawn at random:
  experts with the same units, chosen together, would stay the same for ever.
  UserError, with the keys, where a token's experts cannot hold the FFN.
  """
  moe, f = config.moe, config.moe.d_expert
  shared, k = moe.num_shared_experts * f, moe.experts_per_token
  given = f'moe.d_expert={f} and the dense run has model.d_ff={d_ff}'
  if f > d_ff:
    raise UserError(f'{given}: an expert must be no wider than that')
  if shared > d_ff:
    raise UserError(
      f'moe.num_shared_experts={moe.num_shared_experts} of {given}: together they must be no wider'
    )
  if shared + k * f < d_ff:
    raise UserError(
      f'moe.num_shared_experts={moe.num_shared_experts} + moe.experts_per_token={k} of {given}: '
      f'the {shared + k * f} hidden units of a token cannot hold it: give it more or wider experts'
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
  """The fewest experts that hold the FFN with the shared ones and of which K is a multiple; K
  where E is no multiple of that.
  """
  moe = config.moe
  fits = lambda g: (moe.num_shared_experts + g) * moe.d_expert >= d_ff
  k = moe.experts_per_token
  group = next(g for g in range(1, k + 1) if not k % g and fits(g))
  return k if moe.num_experts % group else group


def _deal(copies_X, group, generator):
  """parts_GF, ascending: each unit in as many different parts as it has copies, those that have the
  fewest units yet, so that all end equally full.
  """
  parts: list[list[int]] = [[] for _ in range(group)]
  filled_G = np.zeros(group)
  for unit, copies in enumerate(copies_X):
    for part in np.argsort(filled_G + generator.random(group))[:copies]:
      parts[part].append(unit)
      filled_G[part] += 1
  return np.array(parts)
