"""Beyond the paper: attention against experts, at the same compute.

  python -m launch.sweep --sweep=experiments/studies/attention_share.py

DeepSeekMoE with two heads, with one, and with three. The experts' width makes up for the compute
that attention takes or leaves, including its products of queries with keys and of these with
values. The number of experts keeps the total: 1 + 63 experts of width 32, 1 + 49 of 42, 1 + 95 of
21; a token is routed to 7. Training FLOPs and parameters are equal to within 1%; activated
parameters, of which attention's products have none, to within 6%. Measured on held-out text, by
domain, and on text of random pieces that only attention can predict (moe/analysis/probes.py): a
stretch of 64 pieces and the same again (copying), and a value to be looked up by its key among
eight (lookup). The gain of copying is how much lower the loss on the second stretch is than on the
first. The loss itself is not the measure: above chance, it says how wrongly sure a model is of
random text. (This was decided when the runs of two heads had been scored, before any other had.)
What is claimed: copying gains more with three heads than with two, and less with one. Presupposed:
with two heads copying gains anything. Beside the claim: lookup, and held-out loss.
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
  sizes,
)
from experiments.studies.common import DOMAINS, LONG, Run, Scale, only_long
from experiments.studies.intervals import difference
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
_COPYING, _LOOKUP = 'gain of copying', 'loss of lookup'
_PROBES = (_COPYING, _LOOKUP)


def sweep(scale: Scale = LONG) -> list[Run]:
  only_long(scale, 'attention_share')
  return [
    scale.run('deepseek_moe', run, changed, measures=('probes',)) for run, changed in _HEADS.items()
  ]


_COLUMNS = (
  *('attention', 'parameters', 'activated', 'training FLOPs', 'seeds', HELD_OUT_LOSS),
  *('95% interval',),
  *(*DOMAINS, *_PROBES),
)


def analyse(results: Results) -> Analysis:
  """Losses, also by domain, and both probes for each number of heads."""
  probe = lambda entry, name: results.measure(entry.run, 'probes', name)
  gain = lambda entry: difference(probe(entry, 'copying_first'), probe(entry, 'copying'))
  probes = {
    _COPYING: {entry.label: gain(entry) for entry in _ENTRIES},
    _LOOKUP: {entry.label: probe(entry, 'lookup') for entry in _ENTRIES},
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

  def beside(probe, first, second, role, **expected):
    values = difference(probes[probe][first.label], probes[probe][second.label])
    what = f'{probe}: {first.label} − {second.label}'
    return Comparison(what, values, role=role, unit='nats of a probe', digits=3, **expected)

  comparisons = (
    beside(_COPYING, three, two, Role.CLAIM, above=0.0),
    beside(_COPYING, one, two, Role.CLAIM, below=0.0),
    Comparison(
      f'{_COPYING}: {two.label}',
      probes[_COPYING][two.label],
      above=0.0,
      digits=3,
      role=Role.PREMISE,
      unit='nats of a probe',
    ),
    beside(_LOOKUP, three, two, Role.BESIDE, below=0.0),
    beside(_LOOKUP, one, two, Role.BESIDE, above=0.0),
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
      *(dots(f'Probe: {probe}', 'nats a token', probes[probe]) for probe in _PROBES),
      differences('Paired differences of loss', comparisons),
    ),
    'Whether a difference comes from the heads, from the width of the experts or from how many '
    'there are to choose from; more layers in place of more heads; longer sequences, with more to '
    'look up; models that copy well: a gain of 12 nats would be perfect, and by chance a looked-up '
    'piece costs 7.6.',
  )


def _flops(results: Results, run: str) -> str:
  """A run's training FLOPs over those with two heads, as text."""
  found, of_two = (results.of(name, 'train_flops') for name in (run, _ENTRIES[1].run))
  return NONE if not found or not of_two else f'{found / of_two:.2f}×'
