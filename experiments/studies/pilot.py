"""The pilot: chooses what all studies share, before any of them is run.

  python -m launch.sweep --sweep=experiments/studies/pilot.py --seeds=1
  python -m launch.sweep --sweep=experiments/studies/pilot.py --runs=dense_lr0.004,deepseek_moe_lr0.004
  python -m experiments.studies.pilot        # the two tables of experiments/results/pilot/README.md

Three learning rates, the same for every architecture; then more seeds at the rate chosen, whose runs table1 has, too.
What it found, and what was chosen, is in experiments/results/pilot/README.md. It is no part of the report.
"""

from experiments.studies.analysis import NONE, Results
from experiments.studies.common import PROXY, Run, Scale
from experiments.studies.intervals import difference, interval

_VARIANTS = ('dense', 'gshard', 'deepseek_moe')
_RATES = (0.004, 0.008, 0.002)


def sweep(scale: Scale = PROXY) -> list[Run]:
  return [
    scale.run(variant, _name(variant, rate), {'optimizer.peak_lr': rate}) for rate in _RATES for variant in _VARIANTS
  ]


def _name(variant, rate):
  return f'{variant}_lr{rate:g}'


def tables(results: Results) -> str:
  """Markdown: the loss by rate and architecture, and the gap to Dense by seed at each rate that has several seeds."""
  lines = ['| peak learning rate | ' + ' | '.join(_VARIANTS) + ' |', '|---:' * (1 + len(_VARIANTS)) + '|']
  for rate in _RATES:
    of_one = [results.loss(_name(variant, rate)).get(0) for variant in _VARIANTS]
    lines.append(f'| {rate:g} | ' + ' | '.join(NONE if loss is None else f'{loss:.4f}' for loss in of_one) + ' |')
  lines += ['', '| run | seeds | losses | standard deviation |', '|---|---:|---|---:|']
  for rate in _RATES:
    dense = results.loss(_name('dense', rate))
    rows = {_name(variant, rate): results.loss(_name(variant, rate)) for variant in _VARIANTS}
    rows |= {f'{name} − dense': difference(loss, dense) for name, loss in rows.items() if 'dense' not in name}
    for name, values in rows.items():
      found = interval(values)
      if found is not None and found.half is not None:
        shown = ', '.join(f'{values[seed]:.4f}' for seed in sorted(values))
        lines.append(f'| {name} | {found.n} | {shown} | {found.sd:.4f} |')
  return '\n'.join(lines)


if __name__ == '__main__':
  from launch.sweeps import ledger

  print(tables(Results(ledger.current(__file__))))
