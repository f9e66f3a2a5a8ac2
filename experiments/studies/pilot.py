"""The pilot: chooses what all studies share, before any of them is run.

  python -m launch.sweep --sweep=experiments/studies/pilot.py --seeds=1
  python -m launch.sweep --sweep=experiments/studies/pilot.py \\
    --runs=dense_lr0.002,deepseek_moe_lr0.002

It tries four learning rates, the same for five architectures, and then more seeds at the chosen
rate, whose runs table1 has, too. Hash Layer and Switch were searched when the other studies had
been run at the rate chosen without them. Dense×4 and ×16 were tried last, and only at half of it.
`make report` writes what it found and chose to experiments/results/earlier/pilot/README.md.
"""

import math

from experiments.studies.analysis import NONE, Results
from experiments.studies.common import PROXY, Run, Scale
from experiments.studies.intervals import difference, interval

_VARIANTS = ('dense', 'hash', 'switch', 'gshard', 'deepseek_moe')
_RATES = (0.004, 0.008, 0.002, 0.001)  # in the order in which they were tried
_LARGER = ('dense_x4', 'dense_x16')  # more parameters often want lower rates
_LARGER_RATES = (0.002, 0.001)
SCALE = 'proxy'
TITLE = 'The pilot: what all runs share, and how it was chosen'
CHOICE = (
  'Every run has 3 layers, d 96, 2 heads of 48, a vocabulary of 2048, sequences of 128 tokens, 16 '
  'of them a step, bfloat16, and 1500 steps: 3.07M tokens. If d is a multiple of 12, a quarter of '
  'an FFN is a whole number, so that experts of both sizes have exactly the same parameters.',
  'Other shapes were tried before, with one seed each. With d 256 and 6 layers, 2 cores train on 2 '
  'to 3 thousand tokens a second, which leaves 0.7M tokens for a run if all studies are to take '
  'about 8 hours. With 4 layers, d 96 and sequences of 256, GShard was still behind Dense after '
  '500 steps (1.0M tokens, peak learning rate 0.002), by 0.02: experts need more tokens than that '
  'to pay off. With 3 layers, 2 heads rather than 4 and sequences of 128, they train on about 12 '
  'thousand tokens a second.',
  'All models have the same learning rate. Dense, GShard and DeepSeekMoE have their lowest loss at '
  '0.002; at half and at twice that rate all three are worse. The same holds for Switch; Hash '
  'Layer is as good at 0.004 (3.3402, and 3.3418 at 0.002). These two were searched after the '
  'studies had been run. Dense×4 and Dense×16, which lower rates might have suited better, were '
  'tried at half of 0.002, one seed each: both are worse, Dense×4 by 0.032, Dense×16 by 0.011, '
  'which is within the spread of seeds; higher rates were not tried. All other variants, and the '
  'other widths of the scaling study, have this rate without a search. The runs of seed 0 of '
  'Dense, GShard and DeepSeekMoE at 0.002 are runs of the studies, too, and have helped to choose '
  'the rate; the other seeds have not.',
  'A seed shifts all models alike, so only paired differences count: DeepSeekMoE is ahead of Dense '
  'by 0.135 in the mean of three seeds, and that difference varies by 0.015 (standard deviation), '
  'a ninth of it.',
)


def sweep(scale: Scale = PROXY) -> list[Run]:
  cases = [(variant, rate) for rate in _RATES for variant in _VARIANTS]
  cases += [(variant, rate) for rate in _LARGER_RATES for variant in _LARGER]
  return [
    scale.run(variant, _name(variant, rate), {'optimizer.peak_lr': rate}) for variant, rate in cases
  ]


Table = tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]  # columns, rows


def tables(results: Results) -> tuple[Table, Table]:
  """Seed 0's loss by learning rate and architecture;
  and, where there are several seeds, losses and their gaps to Dense.
  """
  searched = _VARIANTS + _LARGER
  search = tuple(
    (
      f'{rate:g}',
      *(text(loss[0]) if 0 in loss else NONE for loss in _losses(results, rate, searched).values()),
    )
    for rate in sorted(_RATES)
  )
  noise = []
  for rate in sorted(_RATES):
    of_one = _losses(results, rate, _VARIANTS)
    dense = of_one[_VARIANTS[0]]
    gaps = {
      f'{variant} − {_VARIANTS[0]}': difference(of_one[variant], dense) for variant in _VARIANTS[1:]
    }
    for name, values in (of_one | gaps).items():
      found = interval(values)
      if found is not None and found.half is not None:
        shown = ', '.join(text(values[seed]) for seed in sorted(values))
        noise.append((name, f'{rate:g}', shown, f'{found.mean:.4f}', f'{found.sd:.4f}'))
  return (
    (('peak learning rate', *searched), search),
    (
      ('held-out loss', 'peak learning rate', 'by seed', 'mean', 'standard deviation'),
      tuple(noise),
    ),
  )


def text(loss):
  return 'diverged' if math.isnan(loss) else f'{loss:.4f}'


def _losses(results, rate, variants):
  return {variant: results.loss(_name(variant, rate)) for variant in variants}


def _name(variant, rate):
  return f'{variant}_lr{rate:g}'
