"""Beyond the paper: how specialised the experts of DeepSeekMoE and GShard are, and become.

  python -m launch.sweep --sweep=experiments/studies/specialisation.py

Both are trained for 5, 10 and 40 tokens an activated parameter of DeepSeekMoE, each run with a
whole schedule. Measured on held-out text, as means over layers (experiments/sweeps/measures.py):
what one choice of a token tells of the domain of its text, of the class of its piece, and of the
class of the next piece, each as a share of its entropy; and a ratio: how far the loss rises with
the weights of another expert of the layer in an expert's place, over how far it rises with none
there. At 0 another expert does as well; at 1 or more it is no better than nothing. The paper argues
by masking (Figure 4) that fine experts are less redundant. What has to carry over, at 40: the ratio
is higher for DeepSeekMoE, and a choice tells more of the domain. Presupposed: GShard's ratio is
below 1, since above it the ratio says how much a wrong expert harms, and no longer whether one can
stand in for another. (This was added when DeepSeekMoE had been scored at 40, where its own ratio is
1.4 to 1.8, and before any run of GShard was.) Beside the claim: both grow with training, and so do
the other measures.
"""

from experiments.studies.analysis import Analysis, Results, over_tokens, shown, sided, valued
from experiments.studies.common import LONG, Run, Scale, only_long
from experiments.studies.intervals import Values, difference
from experiments.studies.verdicts import Comparison, Role

SCALE, SEEDS = 'long', 5
CLAIM = "DeepSeekMoE's experts are harder to replace than GShard's, and tell more of the domain."
_LABELS = {'deepseek_moe': 'DeepSeekMoE', 'gshard': 'GShard'}
_SHARES = {'domain': 'domain', 'class': "piece's class", 'next_class': "next piece's class"}
_SHORT, _, _WHOLE = _TOKENS = 5, 10, 40  # an activated parameter


def sweep(scale: Scale = LONG) -> list[Run]:
  only_long(scale, 'specialisation')
  runs = []
  for variant in _LABELS:
    for tokens in _TOKENS:
      changed = scale.of_length(tokens / _WHOLE)
      name = f'{variant}_{tokens}'
      runs.append(scale.run(variant, name, changed, measures=('specialisation',)))
  return runs


_COLUMNS = (
  *('model', 'tokens an activated parameter', 'seeds'),
  *(f'a choice tells of the {label}' for label in _SHARES.values()),
  *('rise with another expert', 'rise with none', 'their ratio', '95% interval'),
)


def analyse(results: Results) -> Analysis:
  """Every measure for both models at all lengths."""
  keys = [(variant, tokens) for variant in _LABELS for tokens in _TOKENS]
  of = lambda key, name: results.measure(f'{key[0]}_{key[1]}', 'specialisation', name)
  ratio = {key: _ratio(of(key, 'substituted'), of(key, 'removed')) for key in keys}
  shares = {name: {key: of(key, name) for key in keys} for name in _SHARES}
  rows = tuple(
    (
      _LABELS[key[0]],
      str(key[1]),
      shown(shares['domain'][key])[0],
      *(shown(shares[name][key], 3)[1] for name in _SHARES),
      *(shown(of(key, name), 4)[1] for name in ('substituted', 'removed')),
      *_shown_ratio(ratio[key], shares['domain'][key]),
    )
    for key in keys
  )
  over_training = lambda title, axis, of: over_tokens(
    title,
    axis,
    {label: {n: of[variant, n] for n in _TOKENS} for variant, label in _LABELS.items()},
  )
  return Analysis(
    _COLUMNS,
    rows,
    tuple(_comparisons(ratio, shares)),
    (
      over_training('Rise with another expert ÷ with none', 'ratio', ratio),
      *(
        over_training(f'What a choice tells of the {_SHARES[name]}', 'share of its entropy', values)
        for name, values in shares.items()
      ),
    ),
    'Whether several experts together can replace one; what experts know beyond domain and class '
    'of piece: of the next piece only its class is asked, since held-out text has each piece too '
    'rarely to say more. Twelve experts of each layer were replaced, on one batch of each domain. '
    'A choice is one of 63 in DeepSeekMoE and one of 16 in GShard, so in DeepSeekMoE it can tell '
    'more.',
  )


def _comparisons(ratio, shares):
  """The comparisons. `ratio`: values by seed for each (variant, tokens); `shares`: the same for
  each of _SHARES.
  """
  moe, gshard = (('deepseek_moe', _WHOLE), ('gshard', _WHOLE))
  compared = lambda what, values, role, words=None: Comparison(
    what, values, above=0.0, digits=3, role=role, unit='share', words=words
  )
  models = 'DeepSeekMoE − GShard'
  comparisons = [
    compared(
      f'ratio: {models}',
      difference(ratio[moe], ratio[gshard]),
      Role.CLAIM,
      sided("DeepSeekMoE's ratio is", after=" than GShard's"),
    ),
    Comparison(
      'ratio: GShard',
      ratio[gshard],
      below=1.0,
      digits=2,
      role=Role.PREMISE,
      unit='share',
      words=valued("GShard's ratio is"),
    ),
    *(
      compared(
        f'{_SHARES[name]}: {models}',
        difference(shares[name][moe], shares[name][gshard]),
        Role.CLAIM if name == 'domain' else Role.BESIDE,
        sided(
          f'a choice tells of the {_SHARES[name]}',
          ('more', 'less'),
          ' in DeepSeekMoE than in GShard',
        ),
      )
      for name in _SHARES
    ),
  ]
  for variant, label in _LABELS.items():
    whole, short = (variant, _WHOLE), (variant, _SHORT)
    grown = {'ratio': ratio} | {_SHARES[name]: shares[name] for name in _SHARES}
    comparisons += [
      compared(
        f'{what}, {label}: at {_WHOLE} − at {_SHORT}',
        difference(values[whole], values[short]),
        Role.BESIDE,
      )
      for what, values in grown.items()
    ]
  return comparisons


def _shown_ratio(ratio: Values, all_seeds: Values) -> tuple[str, str]:
  """The mean with its interval, as text; and of how many seeds, if not of all."""
  seeds, found, limits = shown(ratio, 2)
  return found if len(ratio) == len(all_seeds) else f'{found} ({seeds} seeds)', limits


def _ratio(first: Values, second: Values) -> dict[int, float]:
  """first ÷ second, for the seeds where the loss rises without an expert: in a model that has
  hardly been trained it may not. NaN for a seed that has diverged.
  """
  return {
    seed: first[seed] / second[seed]
    for seed in sorted(first.keys() & second.keys())
    if not second[seed] <= 0
  }
