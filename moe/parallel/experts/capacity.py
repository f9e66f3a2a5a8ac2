"""Room for one round of the exchange, and how much of it balanced routing uses."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from moe.parallel import sharding


class Capacity(NamedTuple):
  """Room for one round, from one device to another.

  Tokens arrive whole: a token's assignments to a device arrive together.
  """

  tokens: int  # c
  assignments: int

  @classmethod
  def of(
    cls,
    tokens: int,
    units_E: Sequence[int],
    per_token: int,
    devices: int,
    buffer: float,
    all_tokens: bool,
  ) -> 'Capacity':
    """`buffer` times what the fullest device expects when every expert is equally likely.

    Args:
      tokens: T.
      units_E: how many units each expert has, 1 if all are equally wide. Devices get units in
        order; units of zeros that fill up the last devices are left out: 4 units on 8 devices
        lie on half of them.
      per_token: K.
      devices: P.
      all_tokens: make room for every token.
    """
    here = max(sharding.shard_sizes(sum(units_E), devices))
    reached = max(_shares_of_tokens(units_E, per_token, devices))
    most = min(sum(sorted(units_E)[-per_token:]), here)  # of one token
    rows = tokens if all_tokens else min(tokens, math.ceil(buffer * tokens * reached))
    assignments = min(
      tokens * most, max(most, math.ceil(buffer * tokens * per_token * here / len(units_E)))
    )
    return cls(max(rows, 1), max(assignments, 1))


def expected_fill(
  tokens: int, units_E: Sequence[int], per_token: int, devices: int, buffer: float
) -> float:
  """The share of the room for one round that is used when every expert is equally likely.

  A ragged exchange sends only this share. It is a mean over devices: 1 / `buffer` if all hold
  equally many experts, but more if all of a device's `tokens` need less room than that.
  """
  room = Capacity.of(tokens, units_E, per_token, devices, buffer, all_tokens=False).tokens
  return tokens * sum(_shares_of_tokens(units_E, per_token, devices)) / devices / room


def _shares_of_tokens(units_E, per_token, devices):
  """Yields, for each device, the share of tokens that choose an expert of which it has a part, when
  all experts are equally likely.
  """
  expert_U = [expert for expert, units in enumerate(units_E) for _ in range(units)]
  ways, first = math.comb(len(units_E), per_token), 0
  for here in sharding.shard_sizes(len(expert_U), devices):
    experts = len(set(expert_U[first : first + here]))
    first += here
    yield 1 - math.comb(len(units_E) - experts, per_token) / ways
