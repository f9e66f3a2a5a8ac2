"""Paired timings: what a MoE layer and a training step cost beside dense ones,
and where the time goes.
"""

import importlib
from collections.abc import Callable

from moe.errors import UserError

# Where each suite is, and what it is called there.
SUITES = {
  'moe_layer': ('moe_layer', 'suite'),
  'train_step': ('train_step', 'suite'),
  'proxy': ('train_step', 'proxy_suite'),
  'tokenizer': ('tokenizer', 'suite'),
  'evaluation': ('evaluation', 'suite'),
  'decode': ('decode', 'suite'),
  'device': ('device.supervise', 'suite'),
}


# {--peer: (the suite that has it, where it is)}.
PEERS = {'transformers': ('train_step', ('train_step', 'beside_transformers'))}


def suite(name: str, peer: str | None = None) -> Callable[[int], list[dict]]:
  """One of `SUITES`, or what it compares with a peer, imported alone: others need what is not
  installed everywhere. UserError for a peer that the suite does not have.
  """
  has_it, (module, function) = PEERS[peer] if peer else (name, SUITES[name])
  if has_it != name:
    raise UserError(f'--peer={peer} goes with --suite={has_it}')
  return getattr(importlib.import_module(f'experiments.benchmarks.{module}'), function)
