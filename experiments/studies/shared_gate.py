"""Beyond the paper: the shared expert behind a gate of its own.

  python -m launch.sweep --sweep=experiments/studies/shared_gate.py

DeepSeekMoE, and the same with `moe.shared_gate`: the shared expert is weighted by σ(u · w) of each
token (docs/routing.md). If it were equally useful to all text, the gate would be equally open
everywhere. What is claimed: it is not, and its mean openness differs by more than 0.02 between the
most and the least open domain; and the gate costs no loss, no more than 0.02. Beside the claim: the
gate is open where it should be, so that without the shared expert the loss rises more on the
domain for which it is most open than on that for which it is least. (This was added when the claim
had been decided, before any loss without the shared expert was known.) Shown, too: how open the
gate is for every class of piece, and for how many tokens it is closed, below 0.1.
"""

from collections.abc import Mapping
from statistics import mean

from experiments.studies.analysis import (
  HELD_OUT_LOSS,
  Analysis,
  Entry,
  Results,
  against,
  differences,
  dots,
  shown,
  sided,
  sizes,
  spread,
  valued,
)
from experiments.studies.common import DOMAINS, LONG, Run, Scale
from experiments.studies.intervals import Values, difference
from experiments.studies.verdicts import ABOUT, Comparison, Role

SCALE, SEEDS = 'long', 5
CLAIM = (
  'A gate on the shared expert opens differently for different kinds of text, and costs almost no '
  'loss.'
)
_APART = 0.02
_OFF = 'shared off'
# Classes of pieces (moe/analysis/counts.py) that the corpus has many of.
_CLASSES = ('cjk', 'word', 'letters', 'digit', 'symbol', 'space')


def sweep(scale: Scale = LONG) -> list[Run]:
  gated = {'moe.shared_gate': True}
  off = {_OFF: {'without_shared': True}}
  return [
    scale.run('deepseek_moe'),
    scale.run('deepseek_moe', 'gated', gated, off, measures=('shared_gate',)),
  ]


_PLAIN, _GATED = Entry('DeepSeekMoE', 'deepseek_moe'), Entry('gated shared expert', 'gated')
_COLUMNS = (
  *('model', 'parameters', 'seeds', HELD_OUT_LOSS, '95% interval', *DOMAINS),
  'tokens with the gate below 0.1',
)


def analyse(results: Results) -> Analysis:
  """Losses, how open the gate is by domain and by class of piece, and where it is needed."""
  measured = lambda name: results.measure(_GATED.run, 'shared_gate', name)
  open_for = {domain: results.reading(_GATED.run, 'shared_gate', domain) for domain in DOMAINS}
  rise = {domain: _rise(results, domain) for domain in DOMAINS}
  rows = tuple(
    (
      entry.label,
      sizes(results, entry.run)[0],
      *shown(results.loss(entry.run)),
      *(shown(results.domain_loss(entry.run, domain), 3)[1] for domain in DOMAINS),
      shown(measured('closed'), 2)[1] if entry is _GATED else '',
    )
    for entry in (_PLAIN, _GATED)
  )
  most, least = _extremes(open_for)
  comparisons = (
    Comparison(
      'openness, most − least open domain',
      spread(open_for),
      above=_APART,
      digits=3,
      unit='openness',
      words=valued('the gate is', f' more open for {most} than for {least}'),
    ),
    against(results, _GATED, _PLAIN, below=ABOUT),
    Comparison(
      'rise without the shared expert, most − least open domain',
      difference(rise[most], rise[least]),
      above=0.0,
      role=Role.BESIDE,
      unit='rise',
      words=sided(
        'without the shared expert the loss rises by',
        ('more', 'less'),
        f' on {most} than on {least}',
      ),
    ),
  )
  opened = 'σ(u · w), held-out text'
  of_classes = {name: measured(name) for name in _CLASSES}
  return Analysis(
    _COLUMNS,
    rows,
    comparisons,
    (
      dots('How open the gate is, mean over layers', opened, open_for),
      dots('The same by class of piece', opened, of_classes),
      dots('Rise of the loss without the shared expert', 'nats a token', rise),
      differences('Paired difference', comparisons),
    ),
    'Several shared experts, each with a gate; whether the text alone would tell what it closes '
    'for.',
  )


def _rise(results: Results, domain: str) -> dict[int, float]:
  """By how much the gated model's loss on a domain rises without the shared expert."""
  off, on = (results.domain_loss(_GATED.run, domain, evaluation) for evaluation in (_OFF, ''))
  return difference(off, on)


def _extremes(open_for: Mapping[str, Values]) -> tuple[str, str]:
  """The domain for which the gate is most open in the mean, and that for which it is least."""
  openness = lambda domain: mean(open_for[domain].values() or [0.0])
  return max(open_for, key=openness), min(open_for, key=openness)
