"""Room for one round of the exchange, and how much of it balanced routing uses."""

import math
from collections.abc import Sequence
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
      units_E: of how many units each expert is, 1 where all are as wide. Units are dealt out in
        their order, without those of zeros that fill up the last devices: with 4 on 8, half the
        devices get all.
      per_token: K.
      devices: P.
      all_tokens: room for every token.
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
  """Of the room for one round, the share used when every expert is equally likely.

  It is what a ragged exchange sends. A mean over devices: 1 / `buffer` where all hold as many
  experts, but more where that room would hold more than all of a device's `tokens`.
  """
  room = Capacity.of(tokens, units_E, per_token, devices, buffer, all_tokens=False).tokens
  return tokens * sum(_shares_of_tokens(units_E, per_token, devices)) / devices / room


def _shares_of_tokens(units_E, per_token, devices):
  """Of all tokens, those that choose an expert of which a device has a part, all equally likely: of
  every device.
  """
  expert_U = [expert for expert, units in enumerate(units_E) for _ in range(units)]
  ways, first = math.comb(len(units_E), per_token), 0
  for here in sharding.shard_sizes(len(expert_U), devices):
    experts = len(set(expert_U[first : first + here]))
    first += here
    yield 1 - math.comb(len(units_E) - experts, per_token) / ways
