"""Beyond the paper: attention against experts, at the same compute.

  python -m launch.sweep --sweep=experiments/studies/attention_share.py

DeepSeekMoE with two heads, with one, and with three. The experts' width makes up for the compute
that attention takes or leaves, including its products of queries with keys and of these with
values. The number of experts keeps the total: 1 + 63 experts of width 32, 1 + 49 of 42, 1 + 95 of
21; a token is routed to 7. Training FLOPs and parameters are equal to within 1%; activated
parameters, of which attention's products have none, to within 6%. Measured on held-out text, by
domain, and by what attention recalls (moe/analysis/probes.py): a stretch of 64 pieces of held-out
text that stands there for the second time (copying), and the piece that follows one of its pieces
there (lookup). The gain is how much lower their loss is than after another stretch of the domain.
What is claimed: copying gains more with three heads than with two, and less with one. Presupposed:
with two heads copying gains anything. Beside the claim: lookup, and held-out loss.

Both probes were first of random pieces. Scored on the five runs of two heads, and on no others,
they showed nothing to compare: copying gained 0.05 to 0.12 of 12 nats, and what was looked up had
12 where chance has 7.6. Text of the kind that a model has learnt took their place before the other
runs were trained, and those five were trained anew.
"""

from experiments.studies.analysis import (
  HELD_OUT_LOSS,
  LOSS_AXIS,
  NONE,
  Analysis,
  Entry,
  Results,
  against,
  differences,
  dots,
  shown,
  sided,
  sizes,
  valued,
)
from experiments.studies.common import DOMAINS, LONG, Run, Scale, only_long
from experiments.studies.intervals import Values, difference
from experiments.studies.verdicts import Comparison, Role

SCALE, SEEDS = 'long', 5
CLAIM = 'At the same compute more attention and narrower experts copy better.'


def _heads(heads: int, width: int, experts: int) -> dict[str, int]:
  return {
    'model.num_heads': heads,
    'model.num_kv_heads': heads,
    'moe.d_expert': width,
    'moe.num_experts': experts,
  }


_HEADS = {'heads_1': _heads(1, 42, 49), 'deepseek_moe': {}, 'heads_3': _heads(3, 21, 95)}
_ENTRIES = tuple(
  Entry(label, run) for label, run in zip(('1 head', '2 heads', '3 heads'), _HEADS, strict=True)
)
_COPYING, _LOOKUP = 'copying gains', 'lookup gains'
_UNIT = 'nats of a probe'
_PROBES = (_COPYING, _LOOKUP)


def sweep(scale: Scale = LONG) -> list[Run]:
  only_long(scale, 'attention_share')
  return [
    scale.run('deepseek_moe', run, changed, measures=('recall',)) for run, changed in _HEADS.items()
  ]


_COLUMNS = (
  *('attention', 'parameters', 'activated', 'training FLOPs', 'seeds', HELD_OUT_LOSS),
  *('95% interval',),
  *(*DOMAINS, *_PROBES),
)


def analyse(results: Results) -> Analysis:
  """Losses, also by domain, and both probes for each number of heads."""
  probes = {
    probe: {entry.label: _gain(results, entry.run, measured) for entry in _ENTRIES}
    for probe, measured in ((_COPYING, 'copying'), (_LOOKUP, 'lookup'))
  }
  rows = tuple(
    (
      entry.label,
      *sizes(results, entry.run),
      _flops(results, entry.run),
      *shown(results.loss(entry.run)),
      *(shown(results.domain_loss(entry.run, domain), 3)[1] for domain in DOMAINS),
      *(shown(probes[probe][entry.label], 3)[1] for probe in _PROBES),
    )
    for entry in _ENTRIES
  )
  one, two, three = _ENTRIES

  def gains(probe, first, second, role, **expected):
    values = difference(probes[probe][first.label], probes[probe][second.label])
    what = f'{probe}: {first.label} − {second.label}'
    words = sided(probe, ('more', 'less'), f' with {first.label} than with {second.label}')
    return Comparison(what, values, role=role, unit=_UNIT, digits=3, words=words, **expected)

  comparisons = (
    gains(_COPYING, three, two, Role.CLAIM, above=0.0),
    gains(_COPYING, one, two, Role.CLAIM, below=0.0),
    Comparison(
      f'{_COPYING}: {two.label}',
      probes[_COPYING][two.label],
      above=0.0,
      digits=3,
      role=Role.PREMISE,
      unit=_UNIT,
      words=valued(_COPYING, f' with {two.label}'),
    ),
    gains(_LOOKUP, three, two, Role.BESIDE, above=0.0),
    gains(_LOOKUP, one, two, Role.BESIDE, below=0.0),
    against(results, three, two, below=0.0, role=Role.BESIDE),
    against(results, one, two, above=0.0, role=Role.BESIDE),
  )
  losses = {entry.label: results.loss(entry.run) for entry in _ENTRIES}
  return Analysis(
    _COLUMNS,
    rows,
    comparisons,
    (
      dots('Held-out loss', LOSS_AXIS, losses),
      *(dots(f'What {probe}', 'nats a piece', probes[probe]) for probe in _PROBES),
      differences('Paired differences of loss', comparisons),
    ),
    'Whether a difference comes from the heads, from the width of the experts or from how many '
    'there are to choose from; more layers in place of more heads; longer sequences, with more to '
    'look up; models that copy text which is unlike what they were trained on: stretches of random '
    'pieces they hardly copy at all.',
  )


def _gain(results: Results, run: str, probe: str) -> Values:
  """By how many nats a piece the loss is lower after its own text than after another."""
  measured = lambda name: results.measure(run, 'recall', name)
  return difference(measured(f'{probe}_after_other'), measured(probe))


def _flops(results: Results, run: str) -> str:
  """A run's training FLOPs over those with two heads, as text."""
  found, of_two = (results.of(name, 'train_flops') for name in (run, _ENTRIES[1].run))
  return NONE if not found or not of_two else f'{found / of_two:.2f}×'
