"""Which implementation of an op runs: the one enum, the one place that chooses."""

import enum
import functools

from absl import logging


class Implementation(enum.StrEnum):
  """`auto` chooses by platform; any other choice is taken as it is and never falls back."""

  AUTO = 'auto'
  REFERENCE = 'reference'  # readable truth: O(E) in FLOPs where that is simpler
  XLA = 'xla'  # fast on the platform at hand, in plain XLA


def choose(op: str, requested: str, platform: str) -> Implementation:
  """The implementation that runs `op` on `platform` (jax.default_backend()); logs each answer once."""
  requested = Implementation(requested)
  chosen = Implementation.XLA if requested is Implementation.AUTO else requested
  _log_once(op, str(requested), str(chosen), platform)
  return chosen


@functools.cache
def _log_once(op, requested, chosen, platform):
  logging.info('%s: implementation %s (asked for: %s) on %s', op, chosen, requested, platform)
