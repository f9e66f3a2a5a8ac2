"""The pilot: chooses what all studies share, before any of them is run.

  python -m launch.sweep --sweep=experiments/studies/pilot.py --seeds=1
  python -m launch.sweep --sweep=experiments/studies/pilot.py --runs=dense_lr0.004,deepseek_moe_lr0.004

Three learning rates, the same for every architecture; then more seeds at the rate chosen, whose runs table1 has, too.
`make report` writes what it found, and what was chosen, to experiments/results/pilot/README.md.
"""

from experiments.studies.analysis import NONE, Results
from experiments.studies.common import PROXY, Run, Scale
from experiments.studies.intervals import difference, interval

_VARIANTS = ('dense', 'gshard', 'deepseek_moe')
_RATES = (0.004, 0.008, 0.002, 0.001)  # in the order in which they were tried
CHOICE = ('TEXT',)


def sweep(scale: Scale = PROXY) -> list[Run]:
  return [
    scale.run(variant, _name(variant, rate), {'optimizer.peak_lr': rate}) for rate in _RATES for variant in _VARIANTS
  ]


Table = tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]  # columns, rows


def tables(results: Results) -> tuple[Table, Table]:
  """Seed 0's loss by learning rate and architecture; losses, and gaps to Dense, where there are several seeds."""
  search = tuple(
    (f'{rate:g}', *(f'{loss[0]:.4f}' if 0 in loss else NONE for loss in _losses(results, rate).values()))
    for rate in sorted(_RATES)
  )
  noise = []
  for rate in sorted(_RATES):
    of_one = _losses(results, rate)
    dense = of_one[_VARIANTS[0]]
    gaps = {f'{variant} − {_VARIANTS[0]}': difference(of_one[variant], dense) for variant in _VARIANTS[1:]}
    for name, values in (of_one | gaps).items():
      found = interval(values)
      if found is not None and found.half is not None:
        shown = ', '.join(f'{values[seed]:.4f}' for seed in sorted(values))
        noise.append((name, f'{rate:g}', shown, f'{found.mean:.4f}', f'{found.sd:.4f}'))
  return (
    (('peak learning rate', *_VARIANTS), search),
    (('held-out loss', 'peak learning rate', 'by seed', 'mean', 'standard deviation'), tuple(noise)),
  )


def _losses(results, rate):
  return {variant: results.loss(_name(variant, rate)) for variant in _VARIANTS}


def _name(variant, rate):
  return f'{variant}_lr{rate:g}'
