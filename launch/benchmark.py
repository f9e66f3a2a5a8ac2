"""Paired timings in one process; errors and speed of every op on an accelerator.

  python -m launch.benchmark --suite=moe_layer|train_step|proxy|tokenizer|evaluation|decode|device
    [--check] [--rounds=9] [--peer=transformers]

The two sides of a pair run in turn, so that a machine whose speed drifts slows both; the ratio is
taken pair by pair. --format=json prints a list of {name, ratio_median, ratio_min, ratio_max,
rounds, bar}. Pairs add the tokens a second of both sides. Parts (`step: attention`, …), whose ratio
is their share of the whole, add GFLOP/s beside those of a big product in the same run. --check
exits with 1 if a median is over its bar.

--suite=device measures the device that JAX sees, in at most 8 minutes. A ratio is an error over its
tolerance, with a bar of 1, or a ratio of times; it is null where nothing is compared. A record says
why its case failed (`failed`, which --check counts), does not run there or was left out.
docs/kernels.md has more.
"""

import json

from absl import flags

from experiments.benchmarks import PEERS, SUITES, suite
from moe import cli, host_memory
from moe.errors import UserError

SUITE = flags.DEFINE_enum(
  'suite',
  'train_step',
  list(SUITES),
  'moe_layer: a layer against a dense FFN; train_step: a training step of proxy.py:deepseek_moe; '
  "proxy: that step against a dense model's only; tokenizer: a tokenizer.json against Hugging "
  "Face's library; evaluation: requests of launch.evaluate --tasks against launch.evaluate and "
  'Hugging Face; decode: tokens of proxy.py:deepseek_moe against a dense model and llama.cpp; '
  'device: every op on the accelerator at hand against the reference, a layer, a step, decoding.',
)
ROUNDS = flags.DEFINE_integer('rounds', 9, 'Pairs to time, after one of warm-up.')
CHECK = flags.DEFINE_bool('check', False, 'Exit with 1 if a median is over its bar.')
PEER = flags.DEFINE_enum('peer', None, list(PEERS), 'With train_step: only against this library.')
READ = flags.DEFINE_string(
  'read', None, 'Output of --suite=device --format=json, to print as a table; measures nothing.'
)
FORMAT = cli.format_flag()


def main(_):
  if ROUNDS.value < 1:
    raise UserError(f'--rounds={ROUNDS.value} must be at least 1')
  from experiments.benchmarks import timing
  from experiments.benchmarks.device import report

  rows = report.read(READ.value) if READ.value else suite(SUITE.value, PEER.value)(ROUNDS.value)
  of_device = READ.value or SUITE.value == 'device'
  table = report.table if of_device else timing.table
  print(json.dumps(rows, indent=2) if FORMAT.value == 'json' else table(rows))
  if CHECK.value and any(map(timing.is_over, rows)):
    return 1


if __name__ == '__main__':
  cli.run(main, memory=host_memory.TRAINING, keep_compiled=False)
