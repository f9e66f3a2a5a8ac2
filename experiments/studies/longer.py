"""Figure 4 and Section 4.5 over training: do they hold later?

  python -m launch.sweep --sweep=experiments/studies/longer.py

DeepSeekMoE and GShard×1.5, each trained for a quarter of the studies' tokens, for as many, and for
two and a half times as many (10, 40 and 100 tokens an activated parameter of DeepSeekMoE), every
run with a whole schedule. Measured: how far the loss rises with the top 1/16 of each token's routed
experts masked (Figure 4), and, for DeepSeekMoE, without its shared expert (Section 4.5). The paper
measures both after 100B tokens, over 300 an activated parameter: +5.7 for DeepSeekMoE, +3.8 for
GShard×1.5; +0.606 without the shared expert. What has to carry over, which the paper does not say:
both grow with training. The rise of DeepSeekMoE minus that of GShard×1.5, and the rise without the
shared expert, are larger at the end of the longest run than at the end of the shortest. Figure 5 is
not asked again: it holds at 40 already (fewer_active.py).
"""

from experiments.studies.analysis import Analysis, Results, over_tokens, shown, sided, sizes
from experiments.studies.common import LONG, Run, Scale, only_long
from experiments.studies.intervals import difference
from experiments.studies.verdicts import Comparison, Role

SCALE, SEEDS = 'long', 5
CLAIM = 'What Figure 4 and Section 4.5 measure grows with training.'
# {share of the scale's steps: tokens an activated parameter of DeepSeekMoE}.
_LENGTHS = {0.25: 10, 1.0: 40, 2.5: 100}
_MASKED, _OFF = 'masked 1/16', 'shared off, 8 routed'
_EVALUATIONS = {
  'deepseek_moe': {
    _MASKED: {'masked_share': 1 / 16},
    _OFF: {'without_shared': True, 'experts_per_token': 8},
  },
  'gshard_x1_5': {_MASKED: {'masked_share': 1 / 16}},
}
_LABELS = {'deepseek_moe': 'DeepSeekMoE', 'gshard_x1_5': 'GShard×1.5'}
_RISE = 'rise of held-out loss, nats a token'


def sweep(scale: Scale = LONG) -> list[Run]:
  only_long(scale, 'longer')
  return [
    scale.run(variant, _name(variant, tokens), scale.of_length(length), evaluations)
    for variant, evaluations in _EVALUATIONS.items()
    for length, tokens in _LENGTHS.items()
  ]


def _name(variant, tokens):
  return f'{variant}_{tokens}'


_COLUMNS = (
  *('model', 'tokens an activated parameter of DeepSeekMoE', 'parameters', 'activated', 'seeds'),
  *('held-out loss', '95% interval', 'rise, top 1/16 masked', '95% interval of it'),
  *('rise without the shared expert', '95% interval of that'),
)


def analyse(results: Results) -> Analysis:
  """Both rises by length, and how far they grow from the shortest run to the longest."""
  rise = lambda variant, tokens, evaluation: difference(
    results.loss(_name(variant, tokens), evaluation), results.loss(_name(variant, tokens))
  )
  masked = {
    variant: {tokens: rise(variant, tokens, _MASKED) for tokens in _LENGTHS.values()}
    for variant in _EVALUATIONS
  }
  off = {tokens: rise('deepseek_moe', tokens, _OFF) for tokens in _LENGTHS.values()}
  apart = {
    tokens: difference(masked['deepseek_moe'][tokens], masked['gshard_x1_5'][tokens])
    for tokens in _LENGTHS.values()
  }
  first, *_, last = _LENGTHS.values()
  rows = tuple(
    (
      label,
      str(tokens),
      *sizes(results, _name(variant, tokens)),
      *shown(results.loss(_name(variant, tokens))),
      *shown(masked[variant][tokens])[1:],
      *(shown(off[tokens])[1:] if variant == 'deepseek_moe' else ('', '')),
    )
    for variant, label in _LABELS.items()
    for tokens in _LENGTHS.values()
  )
  grows = lambda what, before, values: Comparison(
    f'{what}: at {last} − at {first}',
    difference(values[last], values[first]),
    above=0.0,
    unit='growth of a rise',
    words=sided(before, ('more', 'less'), f' after {last} tokens a parameter than after {first}'),
  )
  comparisons = (
    grows(
      'rise of DeepSeekMoE − of GShard×1.5, masked 1/16',
      "DeepSeekMoE's rise exceeds GShard×1.5's by",
      apart,
    ),
    grows('rise without the shared expert', 'dropping the shared expert raises the loss by', off),
    Comparison(
      f'at {last}: rise of DeepSeekMoE − of GShard×1.5, masked 1/16',
      apart[last],
      above=0.0,
      paper=(7.5 - 1.8) - (5.6 - 1.8),
      role=Role.BESIDE,
    ),
    Comparison(
      f'at {last}: without the shared expert − with it',
      off[last],
      above=0.25,
      paper=2.414 - 1.808,
      role=Role.BESIDE,
    ),
  )
  return Analysis(
    _COLUMNS,
    rows,
    comparisons,
    (
      over_tokens('Rise with the top 1/16 masked', _RISE, {_LABELS[v]: masked[v] for v in _LABELS}),
      over_tokens('The same, DeepSeekMoE − GShard×1.5', _RISE, {'difference of the rises': apart}),
      over_tokens('Rise without the shared expert', _RISE, {'DeepSeekMoE': off}),
    ),
    '300 tokens per activated parameter and more; widths other than d 48. The learning rate was '
    'searched at the shortest length, and the warm-up has the same length in all runs.',
  )
