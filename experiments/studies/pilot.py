"""The pilot: chooses what all studies share, before any of them is run.

  python -m launch.sweep --sweep=experiments/studies/pilot.py --seeds=1
  python -m launch.sweep --sweep=experiments/studies/pilot.py --runs=dense_lr0.004,deepseek_moe_lr0.004
  python -m experiments.studies.pilot        # the two tables of experiments/results/pilot/README.md

Half the tokens of the studies, three learning rates, the same for every architecture; then more seeds at the rate
chosen. What it found, and what was chosen, is in experiments/results/pilot/README.md. Not part of the report.
"""

from pathlib import Path

from experiments.studies.common import PROXY, Run, Scale

_VARIANTS = ('dense', 'gshard', 'deepseek_moe')
_RATES = (0.002, 0.004, 0.008)
_STEPS = 500


def sweep(scale: Scale = PROXY) -> list[Run]:
  return [
    scale.run(variant, _name(variant, rate), {'optimizer.peak_lr': rate, 'train.num_steps': _STEPS})
    for rate in _RATES
    for variant in _VARIANTS
  ]


def _name(variant, rate):
  return f'{variant}_lr{rate:g}'
