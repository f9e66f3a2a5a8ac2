"""Paired timings, such as of a MoE layer and a training step beside dense ones,
and where the time goes.
"""

import importlib
from collections.abc import Callable

from moe.errors import UserError

# {suite: (its module, its function there)}.
SUITES = {
  'moe_layer': ('moe_layer', 'suite'),
  'train_step': ('train_step', 'suite'),
  'proxy': ('train_step', 'proxy_suite'),
  'tokenizer': ('tokenizer', 'suite'),
  'evaluation': ('evaluation', 'suite'),
  'decode': ('decode', 'suite'),
  'device': ('device.supervise', 'suite'),
}


# {--peer: (the suite that has it, (its module, its function there))}.
PEERS = {'transformers': ('train_step', ('train_step', 'beside_transformers'))}


def suite(name: str, peer: str | None = None) -> Callable[[int], list[dict]]:
  """The function of one of `SUITES`, or the one that compares it with a peer. Imports that module
  alone: others need packages that are not installed everywhere. UserError for a peer that the suite
  does not have.
  """
  has_it, (module, function) = PEERS[peer] if peer else (name, SUITES[name])
  if has_it != name:
    raise UserError(f'--peer={peer} goes with --suite={has_it}')
  return getattr(importlib.import_module(f'experiments.benchmarks.{module}'), function)
