"""Room for one round of the exchange, and how much of it balanced routing uses."""

import math
from typing import NamedTuple

from moe.parallel import sharding


class Capacity(NamedTuple):
  """Room for one round, from one device to another.

  Whole tokens: a token's assignments arrive together.
  """

  tokens: int  # c
  assignments: int

  @classmethod
  def of(
    cls, tokens: int, experts: int, per_token: int, devices: int, buffer: float, all_tokens: bool
  ) -> 'Capacity':
    """`buffer` times what the fullest device expects when every expert is equally likely.

    Args:
      tokens: T.
      experts: E, without those of zeros that fill up the last devices: with 4 on 8, half the
        devices get all.
      per_token: K.
      devices: P.
      all_tokens: room for every token.
    """
    here = max(sharding.shard_sizes(experts, devices))
    reached, most = _share_of_tokens(experts, per_token, here), min(per_token, here)
    rows = tokens if all_tokens else min(tokens, math.ceil(buffer * tokens * reached))
    assignments = min(
      tokens * most, max(most, math.ceil(buffer * tokens * per_token * here / experts))
    )
    return cls(max(rows, 1), max(assignments, 1))


def expected_fill(tokens: int, experts: int, per_token: int, devices: int, buffer: float) -> float:
  """Of the room for one round, the share used when every expert is equally likely.

  It is what a ragged exchange sends. A mean over devices: 1 / `buffer` where all hold as many
  experts, but more where that room would hold more than all of a device's `tokens`.
  """
  room = Capacity.of(tokens, experts, per_token, devices, buffer, all_tokens=False).tokens
  shares = [
    _share_of_tokens(experts, per_token, here) for here in sharding.shard_sizes(experts, devices)
  ]
  return tokens * sum(shares) / devices / room


def _share_of_tokens(experts, per_token, here):
  """Of all tokens, those that choose one of `here` given experts, all equally likely."""
  return 1 - math.comb(experts - here, per_token) / math.comb(experts, per_token)
