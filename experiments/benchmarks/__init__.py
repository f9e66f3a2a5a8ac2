"""Paired timings: what a MoE layer and a training step cost beside dense ones,
and where the time goes.
"""

import importlib
from collections.abc import Callable

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


def suite(name: str) -> Callable[[int], list[dict]]:
  """One of `SUITES`, imported alone: others need what is not installed everywhere."""
  module, function = SUITES[name]
  return getattr(importlib.import_module(f'experiments.benchmarks.{module}'), function)
